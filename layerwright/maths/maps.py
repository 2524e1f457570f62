"""How well each layer is a linear function of each other one, for all pairs of layers, on held-out samples.

What every pair would repeat is done once for each layer. Two forms give the same numbers, and the cheaper one is taken:

- by moments, where layers are narrow for the number of samples: the inputs' principal directions once for each source,
  then a pair costs products of widths and samples and has all penalties at once;
- by Grams, where layers are wide: the source's maps B and the targets' Grams K once each, then a pair costs one inner
  product of samples × samples for each penalty, whatever the widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.ridge import PENALTIES, Ridge, Split, centred, choose_penalties, ridge


class MapErrors(NamedTuple):
    """Held-out errors of the best map of every source to every target, `[source, target]`, float64.

    Attributes:
        relative: ‖Y − f(X)‖ / ‖Y − mean‖ with the mean of the samples fitted on, so that 1 is no better than the mean;
            NaN for a target that does not vary.
        over_norm: ‖Y − f(X)‖ / ‖Y‖, as in arXiv 2505.13898; NaN for a target of zeros.
    """

    relative: Tensor
    over_norm: Tensor


def map_errors(
    sources: Sequence[Tensor], targets: Sequence[Tensor], split: Split, penalties: Sequence[float] = PENALTIES
) -> MapErrors:
    """Held-out error of the ridge regression from every source to every target.

    The penalty of a pair is chosen on one held-out part for the error on the other, and the other way round.

    Args:
        sources: X of each, `[n, d]`.
        targets: Y of each, `[n, d']`.
        split: places of samples to fit on and to hold out.
        penalties: to choose from, shares of the inputs' mean square direction.

    Returns:
        NaN for layers that are not finite.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [4.0], [5.0]])
        >>> split = Split(torch.arange(3), torch.tensor([3, 4]), 1)
        >>> errors = map_errors([x], [2 * x + 1, x**2], split)
        >>> [f"{e:.2f}" for e in errors.relative[0]]
        ['0.00', '0.64']
    """
    squares = held_out_squares(sources, targets, split, penalties)
    chosen = squares.gather(-2, choose_penalties(squares).unsqueeze(-2)).sum((-2, -1))
    around, length = (
        torch.stack([_squares(move(y), split).sum() for y in targets])
        for move in (lambda y: centred(y, split.train), lambda y: y.double())
    )
    unknown = torch.full_like(around, torch.nan)
    return MapErrors(*((chosen / torch.where(of > 0, of, unknown)).sqrt() for of in (around, length)))


def held_out_squares(
    sources: Sequence[Tensor], targets: Sequence[Tensor], split: Split, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """‖Y − f(X)‖² of every pair, penalty and held-out part, `[source, target, penalty, 2]`; NaN where not finite."""
    finite = [torch.stack([x.isfinite().all() for x in layers]) for layers in (sources, targets)]
    by = moment_squares if _moments_are_cheaper(sources, targets, split, len(penalties)) else gram_squares
    found = by(sources, targets, split, penalties).clamp_min(0.0)
    known = finite[0][:, None] & finite[1]
    return found.masked_fill(~known[..., None, None], torch.nan)


def moment_squares(
    sources: Sequence[Tensor], targets: Sequence[Tensor], split: Split, penalties: Sequence[float]
) -> Tensor:
    """The same by moments.

    With P the source's principal directions, Z = P_trainᵀ Y_train, F = P_heldᵀ Y_held, H = P_heldᵀ P_held and w_λ the
    weights,

        ‖Y − f(X)‖² = ‖Y‖² − 2 Σ_i w_i ⟨F_i, Z_i⟩ + Σ_ij w_i w_j H_ij ⟨Z_i, Z_j⟩
    """
    found = torch.empty(len(sources), len(targets), len(penalties), 2, dtype=torch.float64, device=sources[0].device)
    parts = [split.divide(centred(y, split.train)) for y in targets]
    for s, source in enumerate(sources):
        fit = _fit(source, split, penalties)
        lefts = [fit.left[half] for half in split.halves]
        overlaps = [left.mT @ left for left in lefts]
        for t, (train, *held) in enumerate(parts):
            z = fit.right.mT @ train
            inner = z @ z.mT
            for k, y in enumerate(held):
                linear = fit.weights @ (z * (lefts[k].mT @ y)).sum(1)
                square = torch.einsum("pi,ij,pj->p", fit.weights, overlaps[k] * inner, fit.weights)
                found[s, t, :, k] = y.square().sum() - 2 * linear + square
    return found


def gram_squares(
    sources: Sequence[Tensor], targets: Sequence[Tensor], split: Split, penalties: Sequence[float]
) -> Tensor:
    """The same by Grams of the samples; they take 8 (held + train) · train bytes for each target.

    With B of each source, f(X) = B Y_train, and K = Y Yᵀ of each target,

        ‖Y − f(X)‖² = tr K_held − 2 ⟨B, K_held,train⟩ + ⟨BᵀB, K_train⟩
    """
    found = torch.empty(len(sources), len(targets), len(penalties), 2, dtype=torch.float64, device=sources[0].device)
    n, held = len(split.train), len(split.held)
    grams, crossed = found.new_empty(len(targets), n, n), found.new_empty(len(targets), held, n)
    length = found.new_empty(len(targets), 2)
    for t, target in enumerate(targets):
        y = centred(target, split.train)
        length[t] = _squares(y, split)
        torch.mm(y[split.train], y[split.train].mT, out=grams[t])
        torch.mm(y[split.held], y[split.train].mT, out=crossed[t])
    for s, source in enumerate(sources):
        fit = _fit(source, split, penalties)
        for p in range(len(penalties)):
            hats = [fit.hat(p, half) for half in split.halves]
            linear = [crossed[:, half].flatten(1) @ hat.flatten() for half, hat in zip(split.halves, hats)]
            squares = torch.stack([(hat.mT @ hat).flatten() for hat in hats], 1)
            found[s, :, p] = length - 2 * torch.stack(linear, 1) + grams.flatten(1) @ squares
    return found


def _fit(source: Tensor, split: Split, penalties: Sequence[float]) -> Ridge:
    x = centred(source, split.train)
    return ridge(x[split.train], x[split.held], penalties)


def _squares(y: Tensor, split: Split) -> Tensor:
    """‖Y‖² of both held-out parts, `[2]`."""
    return torch.stack([part.square().sum() for part in split.divide(y)[1:]])


def _moments_are_cheaper(sources: Sequence[Tensor], targets: Sequence[Tensor], split: Split, penalties: int) -> bool:
    """By counted multiplications; what both forms do once for each source does not count."""
    n, held = len(split.train), len(split.held)
    ranks = [min(n, x.shape[1]) for x in sources]
    widths = sum(y.shape[1] for y in targets)
    moments = sum((n + held + r) * r * widths for r in ranks)
    grams = (held + n) * n * widths + sum(
        penalties * (held * n * (r + n) + (held + n) * n * len(targets)) for r in ranks
    )
    return moments < grams
