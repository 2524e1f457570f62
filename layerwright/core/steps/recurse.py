"""Step that makes a tower recursive: a few blocks run in turn, with low-rank corrections for each depth."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.draft import Block, Draft, Weights
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.recipe import noted
from layerwright.core.steps.choice import one_of, whole
from layerwright.core.steps.step import step
from layerwright.maths.low_rank import truncated


@step(preserving="approximate")
def recurse(draft: Draft, unique: int, init: str = "average", rank: int = 0, share: str = "copy") -> Draft:
    """Run K unique blocks L/K times; what depth l lacks is a correction of low rank, W_l ≈ W'_{l mod K} + B_l·A_l.

    B_l·A_l is the truncated singular value decomposition of W_l - W'_{l mod K}: none at rank 0, all of it at full rank,
    where the model stays what it was. Vectors (norms, biases) stay each depth's own.

    Args:
        draft: the model so far.
        unique: K, a divisor of the depth.
        init: W' is the `average` over the loops, the blocks at even intervals (`stepwise`), or the first K (`lower`).
        rank: of the corrections.
        share: `weights` leaves one weight for all loops in memory, `copy` one for each; only at rank 0.
    """
    depth = draft.depth
    if depth % whole(unique, "unique") or unique == depth:
        raise UserError(f"got unique {unique}; expected a divisor of the depth {depth} that is smaller than it")
    whole(rank, "rank", 0)
    one_of(init, "init", ("average", "stepwise", "lower"))
    if one_of(share, "share", ("copy", "weights")) == "weights" and rank:
        raise UserError("got share: weights and a rank above 0; expected rank: 0, as corrections differ with the depth")
    if rank and not draft.as_is:  # a rank of two matrices in one is not that of each
        raise NeedsModel("the rank of matrices that are stored joined or split")
    first = draft.fresh()
    names = _matrices(draft)
    shared = [{name: _start(draft, k, unique, init, name) for name in names} for k in range(unique)]
    blocks = []
    for depth_now, block in enumerate(draft.blocks):
        base = shared[depth_now % unique]
        made = {name: _corrected(base[name], block.weights[name], rank) for name in names}
        tied = {name: first + (depth_now % unique) * len(names) + n for n, name in enumerate(names)}
        weights = Weights({**block.weights, **made})
        blocks.append(Block(block.source, weights, tied if share == "weights" else {}))
    return draft.of(blocks)


def _matrices(draft: Draft) -> list[str]:
    """Names of what is shared: all but vectors. All blocks must have the same."""
    shapes = [{name: tuple(w.shape) for name, w in block.weights.items()} for block in draft.blocks]
    for k, other in enumerate(shapes):
        if other != shapes[0]:
            raise UserError(f"blocks 0 and {k} hold weights of different names or shapes, and cannot be one block")
    return [name for name, w in draft.blocks[0].weights.items() if w.ndim >= 2 and w.is_floating_point()]


def _start(draft: Draft, k: int, unique: int, init: str, name: str) -> Tensor:
    """The weight W' of unique block k."""
    if init == "lower":
        return draft.blocks[k].weights[name]
    if init == "stepwise":
        return draft.blocks[stepwise(draft.depth, unique)[k]].weights[name]
    return noted(_mean, *(block.weights[name] for block in draft.blocks[k::unique]))


def stepwise(depth: int, unique: int) -> list[int]:
    """Blocks at even intervals, the first and the last among them: round(k·(L-1)/(K-1)).

    Example:
        >>> stepwise(18, 3), stepwise(6, 1)
        ([0, 8, 17], [0])
    """
    return [round(k * (depth - 1) / max(unique - 1, 1)) for k in range(unique)]


def _corrected(shared: Tensor, own: Tensor, rank: int) -> Tensor:
    return noted(_with_correction, shared, own, rank) if rank else shared


def _with_correction(shared: Tensor, own: Tensor, rank: int) -> Tensor:
    """W' + B·A; where no rank is lost this is W itself, bit for bit."""
    if rank >= min(own.shape[-2:]):
        return own.clone()
    wide = torch.promote_types(own.dtype, torch.float32)
    base = shared.to(wide)
    return (base + truncated(own.to(wide) - base, rank)).to(own.dtype)


def _mean(*weights: Tensor) -> Tensor:
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    total: Tensor = sum((w.to(wide) for w in weights[1:]), weights[0].to(wide))
    return (total / len(weights)).to(weights[0].dtype)
