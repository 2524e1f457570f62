"""How a model's class starts the weights of a block, and weights that are started anew."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.recipe import Recipe

# What modules of torch call the function that draws their weights.
_RESETS = ("reset_parameters", "_reset_parameters")


@dataclass(frozen=True, eq=False)
class Start:
    """What a fresh weight is.

    Attributes:
        mean: of its numbers.
        spread: their standard deviation.
        fixed: the numbers themselves where they are always the same, as those of a norm are.
        device: where the block has it.
    """

    mean: float
    spread: float
    fixed: Tensor | None
    device: torch.device


def starts(block: nn.Module, model: nn.Module) -> dict[str, Start]:
    """How the weights of a block start, found by starting a copy of it twice.

    Raises:
        UserError: some weight keeps its numbers when its module is started anew.
    """
    hosts = [m for m in model.modules() if isinstance(m, transformers.PreTrainedModel) and block in set(m.modules())]
    first, second = (_fresh(block, hosts[-1] if hosts else None, seed) for seed in (0, 1))
    return {name: start_of(first[name], second[name], p.device) for name, p in block.named_parameters()}


def start_of(first: Tensor, second: Tensor, device: torch.device) -> Start:
    """What two starts of one weight have in common."""
    fixed = first if torch.equal(first, second) else None
    both = torch.stack([first, second]).double()
    return Start(float(both.mean()), float(both.std(correction=0)), fixed, device)


def drawn(like: Tensor, start: Start, seed: int, name: str) -> Tensor:
    """A fresh weight: normal numbers of its mean and spread, drawn when they are needed, and the same at every time.

    Args:
        like: a weight of the same shape and dtype; none of its numbers is used.
        start: what it is.
        seed: of the plan.
        name: of the weight in the new model, so that each has numbers of its own.
    """
    number = zlib.crc32(f"{seed} {name}".encode())
    with torch._C.DisableTorchFunctionSubclass():
        empty = torch.empty(like.shape, dtype=like.dtype, device="meta")
    # No tensor of the base goes into it, so that it is a recipe of nothing.
    recipe: Tensor = Recipe._noted(empty, _draw, (tuple(like.shape), like.dtype, start, number), {}, None)
    return recipe


def _draw(shape: tuple[int, ...], dtype: torch.dtype, start: Start, number: int) -> Tensor:
    if start.fixed is not None:
        return start.fixed.to(start.device, dtype).clone()
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(shape, generator=generator) * start.spread + start.mean).to(start.device, dtype)


def _fresh(block: nn.Module, host: Any, seed: int) -> Mapping[str, Tensor]:
    """The weights of a copy of the block after its modules were started, the innermost first as transformers does."""
    made = copy.deepcopy(block).float()
    with torch.no_grad():
        for p in made.parameters():
            p.requires_grad_(False).fill_(float("nan"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in reversed(list(made.modules())):
            for reset in _RESETS:
                getattr(module, reset, lambda: None)()
        for module in reversed(list(made.modules())) if host is not None else ():
            host._init_weights(module)
    kept = [name for name, p in made.named_parameters() if p.isnan().any()]
    if kept:
        raise UserError(f"nothing starts {kept[0]} of {type(block).__name__} anew, so that no fresh block can be made")
    return dict(made.named_parameters())
