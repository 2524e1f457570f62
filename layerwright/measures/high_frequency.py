"""How much of the stream tells its tokens apart."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.filter import first_tokens, high_pass

_LENGTHS = (16, 64, 256, 1024)


@measure(unit="1", range=(0, 1), tier="deep", paper="2410.24200", index=("length",))
def high_frequency(
    state: Tensor, real: Tensor, *, lengths: tuple[int, ...] = _LENGTHS
) -> dict[tuple[int], tuple[Tensor, Tensor]]:
    """The share of the stream that differs from token to token: its norm without the mean over tokens.

    With X the state of the n tokens of a sequence and HC = I − 11ᵀ/n,

        ‖HC[X]‖_F / ‖X‖_F

    0 where all tokens are alike: nothing but their mean (the direct current) is left. One number a sequence, counted
    once for each of its tokens. `length` 0 is that of whole sequences; at n it is measured among the first n tokens of
    those that have as many.

    Args:
        state: one state of the stream, `[batch, token, width]`.
        real: which tokens are no padding, `[batch, token]`.
        lengths: n to cut at.

    Returns:
        by length `[batch, token]`, unit 1, in [0, 1], and which tokens count.

    Example:
        >>> state = torch.tensor([[[3.0, 4.0], [3.0, -4.0]]])
        >>> values, where = high_frequency(state, torch.ones(1, 2, dtype=torch.bool), lengths=())[(0,)]
        >>> values.tolist(), where.tolist()
        ([[0.800000011920929, 0.800000011920929]], [[True, True]])

    Reference: arXiv 2410.24200.
    """
    cuts = [first_tokens(real, n) for n in (0, *lengths)]
    state = state if real.all() else torch.where(real[..., None], state, 0.0)
    # All tokens less the mean of all: how those of a cut spread around a mean of their own is known from that.
    spread = high_pass(state, real)
    squares, around = state.square().sum(-1), spread.square().sum(-1)
    found: dict[tuple[int], tuple[Tensor, Tensor]] = {}
    for n, (tokens, whole) in zip((0, *lengths), cuts, strict=True):
        counted = tokens.to(state)
        offset = (counted.unsqueeze(1) @ spread).squeeze(1).square().sum(-1) / counted.sum(1).clamp_min(1)
        above = ((around * counted).sum(1) - offset).clamp_min(0)
        share = torch.where(above == 0, 0.0, (above / (squares * counted).sum(1)).sqrt())
        found[(n,)] = share[:, None].expand(real.shape), tokens & whole[:, None]
    return found
