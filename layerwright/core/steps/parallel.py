"""Step that runs neighbouring blocks side by side, joined into one wider block of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerwright.core.draft import Block, Draft, Weights
from layerwright.core.errors import UserError
from layerwright.core.recipe import noted
from layerwright.core.steps.choice import whole
from layerwright.core.steps.fold import unscaled
from layerwright.core.steps.step import step
from layerwright.core.widths import Axes, multiplied


@step(preserving="approximate")
def parallel(draft: Draft, groups: Any = 2) -> Draft:
    """Join every few neighbouring blocks G into one wider block, in which their parts run side by side.

    Part by part, h ← h + Σ_{i∈G} A_i(h), then h ← h + Σ_{i∈G} M_i(h), where the base has h ← h + A_i(h),
    h ← h + M_i(h) block after block. The scales of norms move into the weights that read them, so that one norm
    serves all; heads and hidden units stand beside each other.

    Args:
        draft: the model so far.
        groups: how many blocks make one.
    """
    size = whole(groups, "groups", 2)
    if draft.depth % size:
        raise UserError(f"got groups {size}; expected a divisor of the depth {draft.depth}: all blocks have one width")
    if any(w.ndim > 2 for block in draft.blocks for w in block.weights.values()):
        raise UserError("blocks with experts each choose among their own, and cannot be one block")
    settings, axes = multiplied(draft.config, draft.blocks[0].source, size)
    for k in range(0, draft.depth, size):
        _check_kind(draft, range(k, k + size))
    flat = [unscaled(draft, block) for block in draft.blocks]
    joined = [_joined(draft, flat[k : k + size], axes) for k in range(0, draft.depth, size)]
    draft = draft.of(joined)
    for name, value in settings.items():
        draft = draft.setting(name, value)
    return draft


def _check_kind(draft: Draft, group: Sequence[int]) -> None:
    makes = draft.config.base or []
    first = draft.blocks[group[0]].source
    for k in group[1:]:
        if makes[draft.blocks[k].source] != makes[first]:
            raise UserError(f"blocks {group[0]} and {k} are of different kinds, and cannot be one block")


def _joined(draft: Draft, group: Sequence[Block], axes: Axes) -> Block:
    first = group[0]
    k = first.source
    neutral = {name for norm in draft.anatomy.norms(k) for name in (norm.weight, norm.bias) if name}
    inputs = draft.anatomy.input_axes(k)
    # A bias after a matrix that reads what became wider is added once a block: together they add their sum.
    sums = {name.removesuffix("weight") + "bias" for name, axis in axes.items() if inputs.get(name) == axis}
    made = Weights()
    for name, weight in first.weights.items():
        each = [block.weights[name] for block in group]
        if name in axes:
            made[name] = torch.cat(each, dim=axes[name])
        elif name in sums:
            made[name] = noted(_sum, *each)
        else:
            made[name] = weight if name in neutral else noted(_the_same, name, *each)
    return Block(k, made)


def _sum(*weights: Tensor) -> Tensor:
    return torch.stack(weights).sum(0)


def _the_same(name: str, *weights: Tensor) -> Tensor:
    """A weight that the wider block has once."""
    if not weights[0].is_meta and any(not torch.equal(w, weights[0]) for w in weights[1:]):
        raise UserError(f"step parallel: the blocks of a group differ in {name}, of which one wider block has only one")
    return weights[0]
