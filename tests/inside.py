"""What is given to measures of attention and of hidden activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.batch import Batch
from layerwright.core.desk import Desk, Numbers
from layerwright.core.hidden import HiddenFinder
from layerwright.core.inside import SCOPES, InsidePass
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack


class Listener(Desk):
    """Keeps what it is given, by scope and block."""

    def __init__(self, *scopes: str) -> None:
        super().__init__([], {})
        self.scopes = scopes
        self.given: dict[tuple[str, int], Any] = {}

    def wants(self, *scopes: str) -> bool:
        return any(scope in self.scopes for scope in scopes)

    def evaluate(self, scope: str, quantities: Any, prefix: str = "") -> Any:
        return {(scope, ()): Numbers(quantities[scope])}

    def add(self, name: str, key: Any, numbers: Numbers) -> None:
        self.given[name, key[0]] = numbers.values

    def give(self, scope: str, key: Any, quantities: Any, prefix: str = "") -> None:
        self.given[scope, key[0]] = quantities


def inside(
    model: nn.Module, inputs: Any, *scopes: str, blocks: str | None = None, prefix: int = 0
) -> dict[tuple[str, int], Any]:
    """All that is given, by scope and block."""
    stack = Stack.find(model, inputs, blocks)
    desk = Listener(*(scopes or SCOPES))
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        batch = Batch.of(stack, inputs, 0, prefix, len(replay.states[0]), 0)
        batch.settle(stack.layout.tokens(replay.states[0]), replay.states[0])
        InsidePass(stack, desk, batch, replay, HiddenFinder(stack)).run(lambda n: None)
    return desk.given


def attention(model: nn.Module, inputs: Any, blocks: str | None = None) -> list[Tensor]:
    """The probabilities of every block that has some."""
    return list(inside(model, inputs, "attention", blocks=blocks).values())


def padded(ids: Tensor, lengths: list[int], left: bool = False) -> dict[str, Tensor]:
    """Token ids with padding behind the first, or in front of the last, so many tokens."""
    place = torch.arange(ids.shape[1]).expand(ids.shape)
    known = torch.tensor(lengths)[:, None]
    mask = (place >= ids.shape[1] - known if left else place < known).long()
    return {"input_ids": ids.masked_fill(mask == 0, 3), "attention_mask": mask}
