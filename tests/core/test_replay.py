"""A block called again gives what it gave, and the rest of the model answers from any state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import first, hooked, stream
from torch import Tensor, nn
from zoo import WIDTH, ZOO, Looped, Residual, llama, token_ids, vectors

from layerwright.core.errors import UserError
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay, read_logits, tail
from layerwright.core.stack import Stack


def replay_of(model: nn.Module, inputs: Any, blocks: str | None = None) -> Replay:
    stack = Stack.find(model, inputs, blocks)
    with undisturbed(stack.model), torch.no_grad():
        return Replay(stack, inputs)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_and_tail_again_give_the_same_bit_for_bit(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    replay = replay_of(model, inputs, expected.blocks)
    with undisturbed(replay.stack.model), torch.no_grad():
        for k in range(replay.stack.depth):
            assert torch.equal(replay.block(k, replay.states[k]), replay.states[k + 1])
        logits = read_logits(replay.output, replay.states[-1])
        if logits is not None:
            assert torch.equal(read_logits(replay.tail(replay.states[-1]), replay.states[-1]), logits)


def test_states_are_those_that_plain_hooks_see() -> None:
    model, ids = llama(), token_ids()
    h, _, _ = stream(model, ids)
    states = replay_of(model, {"input_ids": ids}).states
    assert len(states) == len(h) == 4
    assert all(torch.equal(a, b) for a, b in zip(states, h, strict=True))


def test_the_tail_is_norm_and_head() -> None:
    model, ids = llama(), token_ids()
    replay = replay_of(model, {"input_ids": ids})
    state = vectors(3, 12, WIDTH)
    with torch.no_grad():
        assert torch.equal(replay.tail(state).logits, model.lm_head(model.model.norm(state)))


def test_no_block_runs_in_the_tail() -> None:
    model, ids = llama(), token_ids()
    replay = replay_of(model, {"input_ids": ids})
    ran: list[nn.Module] = []
    with hooked(*((block.mlp, lambda module, x, y: ran.append(module)) for block in model.model.layers)):
        tail(replay.stack, replay.structures, replay.states[-1], replay.inputs)
    assert ran == []
    assert not any("forward" in block.__dict__ for block in model.model.layers)


def test_a_shared_block_keeps_its_turns_apart() -> None:
    model, ids = Looped(), token_ids()
    replay = replay_of(model, {"input_ids": ids})
    x = model.embedding(ids)
    for k in range(6):
        assert torch.equal(replay.states[k], x)
        x = model.core[k % 2](x)


class Tupled(Residual):
    """Takes and gives more than the stream: a mask by keyword, a tuple back."""

    def forward(self, x: Tensor, *, mask: Tensor) -> tuple[Tensor, None]:
        return super().forward(x * mask), None


class Model(nn.Module):
    """Hands states on by tuple, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Tupled(), Tupled()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = first(block(x, mask=torch.ones(x.shape[1], 1)))
        return x


def test_tuples_and_keyword_arguments() -> None:
    replay = replay_of(Model(), vectors(2, 5, WIDTH))
    with torch.no_grad():
        assert torch.equal(replay.block(1, replay.states[1]), replay.states[2])
        other = vectors(2, 5, WIDTH) + 1
        assert torch.equal(replay.block(0, other), first(replay.stack.blocks[0](other, mask=torch.ones(5, 1))))


class Impatient(Looped):
    """Loops less often on small inputs."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for _ in range(1 if input_ids.sum() == 0 else 3):
            for block in self.core:
                x = block(x)
        return self.head(x)


def test_a_depth_that_depends_on_the_input_is_refused() -> None:
    stack = Stack.find(Impatient(), {"input_ids": token_ids()})
    with pytest.raises(UserError, match="ran 2 blocks on this batch and 6 when it was traced"):
        Replay(stack, {"input_ids": torch.zeros(2, 5, dtype=torch.long)})


class Odd(Residual):
    """Gives something that holds no stream in front."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x": super().forward(x)}


def test_a_block_that_returns_a_mapping_is_refused_in_one_line() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Odd(), Odd()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)["x"]
            return x

    with pytest.raises(UserError, match="returned dict; expected a tensor or a tuple"):
        Stack.find(Mapped(), vectors(2, 5, WIDTH))
