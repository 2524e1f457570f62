"""Step that moves constants into weights: a norm's scale, a scale by depth, the temperature of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerwright.core.anatomy import folded
from layerwright.core.draft import Block, Draft, changed
from layerwright.core.errors import UserError
from layerwright.core.steps.choice import number
from layerwright.core.steps.step import step


def _kept(norms: Any = False, **rest: Any) -> str:
    return "exact" if norms else "none"


@step(preserving=_kept)
def fold(
    draft: Draft,
    norms: bool = False,
    layernorm_scaling: bool = False,
    scale: Any = None,
) -> Draft:
    """Fold constants into weights, so that plain code computes with them.

    `norms` moves the scale of each norm into the weights that read it, which changes nothing. `layernorm_scaling`
    multiplies the output of block l's norms by 1/√(l+1), l from 0, as in training with LayerNorm Scaling; `scale`
    multiplies what the parts of each block add to the stream by one number a block.

    Args:
        draft: the model so far.
        norms: fold the norms' scales.
        layernorm_scaling: scale the norms' outputs by depth.
        scale: one number a block.
    """
    if sum((bool(norms), bool(layernorm_scaling), scale is not None)) != 1:
        raise UserError("expected one of norms: true, layernorm_scaling: true, or scale: [one number a block]")
    if norms:
        return draft.of(unscaled(draft, block) for block in draft.blocks)
    if layernorm_scaling:
        return draft.of(_scaled(draft, block, (k + 1) ** -0.5) for k, block in enumerate(draft.blocks))
    return draft.of(_quieter(draft, block, f) for block, f in zip(draft.blocks, _numbers(scale, draft.depth)))


def unscaled(draft: Draft, block: Block) -> Block:
    """The block with the scales of its norms in the weights that read them."""
    for norm in draft.anatomy.norms(block.source):
        block = changed(block, folded(block.weights, norm))
    return block


def _scaled(draft: Draft, block: Block, factor: float) -> Block:
    """The block with the outputs of its norms times a factor."""
    norms = draft.anatomy.norms(block.source)
    if not norms:
        raise UserError(f"block {block.source} has no norm that only linear maps read; there is nothing to scale")
    for norm in norms:
        weight = block.weights[norm.weight]
        made = {norm.weight: (weight + (1.0 - norm.neutral)) * factor - (1.0 - norm.neutral)}
        if norm.bias is not None:
            made[norm.bias] = block.weights[norm.bias] * factor
        block = changed(block, made)
    return block


def _quieter(draft: Draft, block: Block, factor: float) -> Block:
    """The block whose parts add so many times as much: the weights that write to the stream times a factor."""
    return changed(block, {name: block.weights[name] * factor for name in draft.anatomy.writers(block.source)})


def _numbers(scale: Any, depth: int) -> Sequence[float]:
    if not isinstance(scale, list) or len(scale) != depth:
        raise UserError(f"got scale {scale!r}; expected a list of {depth} numbers, one a block")
    return [number(x, "scale") for x in scale]
