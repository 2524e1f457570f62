"""Step that widens the feed-forward part and leaves the function as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layerwright.core.draft import Block, Draft, changed
from layerwright.core.errors import UserError
from layerwright.core.recipe import noted
from layerwright.core.steps.choice import number
from layerwright.core.steps.step import step
from layerwright.core.widths import Axes, widening

_NAMES = re.compile("inter|inner|ffn|mlp|d_ff|hidden_dim")


@step(preserving="exact")
def widen(draft: Draft, mlp: Any) -> Draft:
    """Give the feed-forward part of every block more hidden units, silent until they are trained.

    New units are copies of the first ones, and the columns with which they would write to the stream are zero.

    Args:
        draft: the model so far.
        mlp: the new hidden size over the old one.
    """
    factor = number(mlp, "mlp", above=1.0)
    name, size, axes = _setting(draft)
    new = round(factor * size)
    blocks = [_wider(block, axes, draft.anatomy.input_axes(block.source), size, new) for block in draft.blocks]
    return draft.of(blocks).setting(name, new)


def _setting(draft: Draft) -> tuple[str, int, Axes]:
    """The entry of the configuration that is the hidden size, and the axes it is of."""
    k = draft.blocks[0].source
    parts = tuple(f"{s.path}." for s in draft.anatomy.sublayers(k) if s.role.startswith("mlp"))
    found = [(name, *entry) for name, entry in widening(draft.config, k).items()]
    inside = [entry for entry in found if all(n.startswith(parts) for n in entry[2])] if parts else []
    for name, size, axes in inside or [entry for entry in found if _NAMES.search(entry[0])]:
        if any(draft.blocks[0].weights[n].ndim > 2 for n in axes if n in draft.blocks[0].weights):
            raise UserError("the feed-forward part holds experts in one tensor, which this step does not widen")
        return name, size, axes
    raise UserError("no entry of the configuration is the hidden size of the feed-forward part")


def _wider(block: Block, axes: Axes, inputs: Mapping[str, int], size: int, new: int) -> Block:
    made = {}
    for name, axis in axes.items():
        weight = block.weights[name]
        times = weight.shape[axis] // size
        if weight.shape[axis] != size:
            raise UserError(f"{name} holds {times} matrices in one, which this step does not widen")
        made[name] = noted(_grown, weight, axis, new, inputs.get(name) == axis)
    return changed(block, made)


def _grown(weight: Tensor, axis: int, new: int, silent: bool) -> Tensor:
    """A weight with more places along an axis: zero where it reads the new units, copies where it makes them."""
    size = weight.shape[axis]
    extra = weight.index_select(axis, torch.arange(size, new, device=weight.device) % size)
    return torch.cat([weight, torch.zeros_like(extra) if silent else extra], dim=axis)
