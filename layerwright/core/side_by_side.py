"""Blocks in groups, side by side, computed with the base's own blocks: what a joined block must do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.inputs import Inputs
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack


def side_by_side(stack: Stack, inputs: Inputs, order: Sequence[int], size: int) -> Any:
    """What the model gives when every `size` blocks of an order run side by side, part by part.

    h ← h + Σ_{i∈G} A_i(h), then h ← h + Σ_{i∈G} M_i(h): each block is called with all of its parts but one silent.

    Args:
        stack: the base; every block must be a sum of parts.
        inputs: a batch.
        order: of blocks.
        size: how many make a group.
    """
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        state = replay.states[0]
        for start in range(0, len(order), size):
            group = order[start : start + size]
            for part in range(max(len(stack.parts[k]) for k in group)):
                state = state + torch.stack([_alone(stack, replay, k, part, state) for k in group]).sum(0)
        return replay.tail(state)


def can_stand_side_by_side(stack: Stack) -> bool:
    """Whether every block is a sum of parts, each with a module of its own."""
    return all(parts and len({s.path for s in parts}) == len(parts) for parts in stack.parts)


def _alone(stack: Stack, replay: Replay, k: int, part: int, state: Tensor) -> Tensor:
    """What one part of a block adds to a state."""
    block = stack.blocks[stack.order[k]]
    with ExitStack() as handles:
        for n, other in enumerate(stack.parts[k]):
            if n != part:
                handles.callback(block.get_submodule(other.path).register_forward_hook(_silent).remove)
        return replay.block(k, state) - state


def _silent(module: nn.Module, args: Any, out: Any) -> Any:
    return torch.zeros_like(out) if isinstance(out, Tensor) else (torch.zeros_like(out[0]), *out[1:])
