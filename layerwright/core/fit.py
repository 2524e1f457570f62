"""Fit one matrix of a block so that the block does what several did: ridge regression from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, on_device, real_tokens
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.maths.similarity import relative_error

_RIDGE = 1e-4
_SAME = 1e-3


def last_matrix(stack: Stack, batches: Sequence[Inputs], places: tuple[int, int, int], name: str) -> dict[str, Tensor]:
    """The weight `name` with which a block does best what a stretch of blocks does.

    Args:
        stack: the model and its tower.
        batches: data; all of its tokens are fitted.
        places: first block of the stretch, the one after its last, the one to fit.
        name: of a matrix whose product the block adds to the stream.

    Raises:
        UserError: what the block adds is not linear in it.
    """
    start, stop, by = places
    block = stack.blocks[stack.order[by]]
    module = block.get_submodule(name.rpartition(".")[0])
    weight: Tensor = module.get_parameter("weight").detach()
    rows = isinstance(module, nn.Linear)  # else `[in, out]`, as a transposed linear layer has it
    own = (weight if rows else weight.T).double()
    gram = own.new_zeros(own.shape[1], own.shape[1])
    product = own.new_zeros(own.shape)
    for batch in batches:
        given = on_device(batch, stack.model)
        replay = Replay(stack, given)
        before, after = replay.states[start], replay.states[stop]
        whole, read = _watched(replay, by, before, module)
        with instead(block, {name: torch.zeros_like(weight)}):
            rest = replay.block(by, before)
        tokens = stack.layout.tokens
        real = real_tokens(given, tokens(before)).flatten()
        z = read.reshape(-1, own.shape[1])[real].double()
        wanted, silent, done = (tokens(x).flatten(0, 1)[real].double() for x in (after, rest, whole))
        if relative_error(z @ own.T, done - silent) > _SAME:
            raise UserError(f"what block {by} adds is not linear in {name}, so that it cannot be fitted in closed form")
        gram += z.T @ z
        product += (wanted - silent).T @ z
    ridge = _RIDGE * gram.diagonal().mean()
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), (product + ridge * own).T).T
    return {name: (solved if rows else solved.T).to(weight.dtype).contiguous()}


def _watched(replay: Replay, k: int, state: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What a block gives for a state, and what one of its modules read meanwhile."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try:
        return replay.block(k, state), seen[0]
    finally:
        handle.remove()


@contextmanager
def instead(block: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights in a block for a while."""
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, tensor in weights.items():
            path, _, own = name.rpartition(".")
            module = block.get_submodule(path)
            before.append((module, own, module._parameters[own]))
            module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
        yield
    finally:
        for module, own, parameter in reversed(before):
            module._parameters[own] = parameter
