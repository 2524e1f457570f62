"""How alike two sets of features of the same samples are, up to rotation, up to scale, or as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.ridge import centred
from layerwright.maths.similarity import cosine


class Alignment(NamedTuple):
    """Centred kernel alignment of every source with every target, `[source, target]`, float64.

    Attributes:
        cka: in [0, 1]; its expectation is far above 0 for unrelated features wider than there are samples.
        debiased: in [-1, 1], 0 in expectation for unrelated features; NaN with fewer than four samples.
    """

    cka: Tensor
    debiased: Tensor


def kernel_alignment(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Alignment:
    """Linear centred kernel alignment (CKA) of all pairs, with K = X Xᵀ of centred features.

        CKA = tr(K L) / √(tr(K K) tr(L L)),   tr(K L) = ‖Xᵀ Y‖²

    The debiased one puts the unbiased estimate in the place of each trace: with k and l the diagonals and n samples,

        tr(K L) − n/(n−2) k·l + Σk Σl / ((n−1)(n−2))

    Args:
        sources: X of each, `[n, d]`.
        targets: Y of each, `[n, d']`.

    Returns:
        NaN for features that do not vary or are not finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> kernel_alignment([x], [x, 3 * x.flip(1), x[:, :1]]).cka
        tensor([[1.0000, 1.0000, 0.7071]], dtype=torch.float64)
    """
    (xs, ys), n = ([_centred(x) for x in layers] for layers in (sources, targets)), len(sources[0])
    crossed, *own = _products(xs, ys)
    diagonals = [torch.stack([x.square().sum(1) for x in layers]) for layers in (xs, ys)]

    def unbiased(product: Tensor, inner: Tensor, sums: Tensor) -> Tensor:
        return product - n / (n - 2) * inner + sums / ((n - 1) * (n - 2))

    cka = _ratio(crossed, own[0][:, None] * own[1])
    if n < 4:
        return Alignment(cka, torch.full_like(cka, torch.nan))
    k, m = diagonals
    mixed = unbiased(crossed, k @ m.mT, k.sum(1)[:, None] * m.sum(1))
    alone = [unbiased(x, d.square().sum(1), d.sum(1).square()) for x, d in zip(own, diagonals)]
    return Alignment(cka.clamp(max=1.0), _ratio(mixed, alone[0][:, None] * alone[1]).clamp(-1.0, 1.0))


def procrustes(x: Tensor, y: Tensor) -> Tensor:
    """Distance between two sets of features after centring, scaling to length 1 and the best rotation.

        min_Q ‖X − Y Q‖ = √(2 − 2 ‖Xᵀ Y‖_*)

    Args:
        x: X, `[n, d]`.
        y: Y, `[n, d']`; the narrower of the two counts as padded with zeros.

    Returns:
        in [0, √2]; NaN for features that do not vary or are not finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> round(float(procrustes(x, 5 * x.flip(1))), 6), round(float(procrustes(x, x[:, :1])), 4)
        (0.0, 1.0515)
    """
    x, y = _centred(x), _centred(y)
    length = x.norm() * y.norm()
    if not length > 0:
        return torch.full_like(length, torch.nan)
    # Of features wider than there are samples a root of the Gram is left: Xᵀ = Q R.
    x, y = (torch.linalg.qr(z.mT, mode="r").R.mT if z.shape[1] > z.shape[0] else z for z in (x, y))
    nuclear = torch.linalg.svdvals(x.mT @ y).sum() / length
    return (2 - 2 * nuclear).clamp(0.0, 2.0).sqrt()


def cosine_sums(x: Tensor, y: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines between two sets of features of the same samples, summed over groups of samples.

    Args:
        x: `[n, d]`.
        y: `[n, d]`.
        groups: number of the group of each sample, `[n]`.

    Returns:
        sum and count of each group, float64; samples where either is zero or not finite do not count.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> [part.tolist() for part in cosine_sums(x, x, torch.tensor([4, 4, 7]))]
        [[2.0, 0.0], [2.0, 0.0]]
    """
    numbers, place = groups.unique(return_inverse=True)
    x, y = x.double(), y.double()
    known = (x * y).isfinite().all(1) & (x.norm(dim=1) > 0) & (y.norm(dim=1) > 0)
    zeros = torch.zeros(len(numbers), dtype=torch.float64, device=x.device)
    values = cosine(x, y).masked_fill(~known, 0.0)
    return zeros.index_add(0, place, values), zeros.index_add(0, place, known.double())


def _centred(x: Tensor) -> Tensor:
    """Less the mean over samples, of length 1; NaN where the features are not finite."""
    moved = centred(x, torch.arange(len(x), device=x.device))
    length = moved.norm()
    return moved / length if length > 0 else moved


def _products(xs: list[Tensor], ys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """tr(X Xᵀ Y Yᵀ) of all pairs, and of each with itself: by ‖Xᵀ Y‖², or for wide features by Grams.

    A pair of Grams costs n² operations; those of the targets take 8 n² bytes each.
    """
    n, wide, other = len(xs[0]), sum(x.shape[1] for x in xs), sum(y.shape[1] for y in ys)
    if wide * other <= n * (wide + other) + n * len(xs) * len(ys):
        crossed = torch.stack([torch.stack([(x.mT @ y).square().sum() for y in ys]) for x in xs])
        own = [torch.stack([(x.mT @ x).square().sum() for x in layers]) for layers in (xs, ys)]
        return crossed, own[0], own[1]
    grams = torch.stack([(y @ y.mT).flatten() for y in ys])
    rows, squares = [], []
    for x in xs:
        gram = (x @ x.mT).flatten()
        rows.append(grams @ gram)
        squares.append(gram @ gram)
    return torch.stack(rows), torch.stack(squares), grams.square().sum(1)


def _ratio(product: Tensor, squares: Tensor) -> Tensor:
    """Over the root of the product of both own traces, of features of length 1; NaN where one of them is zero."""
    unknown = torch.full_like(squares, torch.nan)
    return product / torch.where(squares > 1e-24, squares, unknown).sqrt()
