"""Step that moves constants into weights: a norm's scale, a scale by depth, the temperature of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from layerwright.core.anatomy import folded
from layerwright.core.draft import Block, Draft, changed
from layerwright.core.errors import UserError
from layerwright.core.queries import Piece
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
    temperature: Any = None,
) -> Draft:
    """Fold constants into weights, so that plain code computes with them.

    `norms` moves the scale of each norm into the weights that read it, which changes nothing. `layernorm_scaling`
    multiplies the output of block l's norms by 1/√(l+1), l from 0, as in training with LayerNorm Scaling; `scale`
    multiplies what the parts of each block add to the stream by one number a block. `temperature` divides the scores of
    a block's self-attention by τ,

        softmax(q·k / (τ√d)),    W_q ← W_q/τ, b_q ← b_q/τ, or γ_q ← γ_q/τ where a norm stands after them

    before a cap on the scores, where the model has one: below 1 attention is sharper, above 1 nearer to a mean.

    Args:
        draft: the model so far.
        norms: fold the norms' scales.
        layernorm_scaling: scale the norms' outputs by depth.
        scale: one number a block.
        temperature: τ above 0, one number, or one a block; a block whose τ is 1 stays as it is.

    Reference: arXiv 2502.05795 for `layernorm_scaling`, arXiv 2410.24200 for `temperature`.
    """
    if sum((bool(norms), bool(layernorm_scaling), scale is not None, temperature is not None)) != 1:
        raise UserError(
            "expected one of norms: true, layernorm_scaling: true, scale: [one number a block], or temperature: 0.9"
        )
    if norms:
        return draft.of(unscaled(draft, block) for block in draft.blocks)
    if layernorm_scaling:
        return draft.of(_scaled(draft, block, (k + 1) ** -0.5) for k, block in enumerate(draft.blocks))
    if scale is not None:
        factors = _numbers(scale, "scale", draft.depth)
        return draft.of(_quieter(draft, block, f) for block, f in zip(draft.blocks, factors))
    each = temperature if isinstance(temperature, list) else [temperature] * draft.depth
    return _tempered(draft, _numbers(each, "temperature", draft.depth))


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


def _tempered(draft: Draft, temperatures: Sequence[float]) -> Draft:
    """The blocks with their queries divided by one number each. What blocks share stays shared where they agree."""
    taus: dict[int, set[float]] = {}
    for block, tau in zip(draft.blocks, temperatures):
        for shared in block.tied.values():
            taus.setdefault(shared, set()).add(tau)
    made: dict[tuple[int, Piece, float], Tensor] = {}
    blocks = []
    for block, tau in zip(draft.blocks, temperatures):
        new: dict[str, Tensor] = {}
        for piece in draft.anatomy.queries(block.source) if tau != 1 else ():
            weight = new.get(piece.name, block.weights[piece.name])
            key = (id(weight), piece, tau)
            if key not in made:
                made[key] = piece.times(weight, 1 / tau)
            new[piece.name] = made[key]
        agreed = {name: shared for name, shared in block.tied.items() if len(taus[shared]) == 1}
        block = changed(block, new)
        blocks.append(block._replace(tied={**block.tied, **agreed}))
    return draft.of(blocks)


def _numbers(values: Any, what: str, depth: int) -> Sequence[float]:
    if not isinstance(values, list) or len(values) != depth:
        raise UserError(f"got {what} {values!r}; expected a list of {depth} numbers, one a block")
    return [number(x, what) for x in values]
