"""Linear regression from a growing context: what iterative algorithms predict for the next point.

Of t points X, y before it, every algorithm here predicts xᵀ φ(S) Xᵀ y for the next point x, with S = XᵀX and its own φ.
In the basis of S's eigenvectors that is one number for each eigenvalue, so that S is decomposed once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.similarity import cosine

# Eigenvalues below this share of the largest are rounding: there are fewer points than dimensions.
_RANK = 1e-12


class Contexts(NamedTuple):
    """The points before each point but the first, of N sequences, in the eigenvectors V of their S.

    Attributes:
        values: λ, the eigenvalues of S, `[N, T, d]`, float64; zero where the points do not reach.
        parts: Vᵀx ∘ VᵀXᵀy, `[N, T, d]`, whose sum with weights φ(λ) is the prediction for x.
    """

    values: Tensor
    parts: Tensor

    def predict(self, weights: Tensor) -> Tensor:
        """Σ φ(λ) parts for weights `[..., N, T, d]`."""
        return (weights * self.parts).sum(-1)


def contexts(xs: Tensor, ys: Tensor) -> Contexts:
    """Every point but the first with the points before it.

    Args:
        xs: `[N, T + 1, d]`.
        ys: `[N, T + 1]`; the last one is not used.

    Raises:
        ValueError: shapes that do not fit, fewer than two points, or numbers that are not finite.

    Example:
        >>> found = contexts(torch.tensor([[[2.0], [1.0], [3.0]]]), torch.tensor([[4.0, 1.0, 0.0]]))
        >>> found.values.flatten().tolist(), found.parts.flatten().tolist()
        ([4.0, 5.0], [8.0, 27.0])
    """
    before, target, query = _checked(xs, ys)
    squares = (before.unsqueeze(-1) * before.unsqueeze(-2)).cumsum(1)
    products = (before * target.unsqueeze(-1)).cumsum(1)
    return _decomposed(squares, products, query[:, 1:])


def whole_context(xs: Tensor, ys: Tensor) -> Contexts:
    """The last point of each sequence with all points before it: the last of `contexts`, T = 1.

    Args:
        xs: `[N, T + 1, d]`.
        ys: `[N, T + 1]`; the last one is not used.

    Raises:
        ValueError: as of `contexts`.

    Example:
        >>> found = whole_context(torch.tensor([[[2.0], [1.0], [3.0]]]), torch.tensor([[4.0, 1.0, 0.0]]))
        >>> found.values.flatten().tolist(), found.parts.flatten().tolist()
        ([5.0], [27.0])
    """
    before, target, query = _checked(xs, ys)
    products = (before.mT @ target.unsqueeze(-1)).mT
    return _decomposed((before.mT @ before).unsqueeze(1), products, query[:, -1:])


def weights_in_context(xs: Tensor, ys: Tensor) -> Contexts:
    """All points as one context, asked along each eigenvector of S: predictions are the weights w in that basis, T = d.

    Args:
        xs: `[N, points, d]`.
        ys: `[N, points]`.

    Raises:
        ValueError: as of `contexts`.

    Example:
        >>> found = weights_in_context(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[4.0, 3.0]]))
        >>> least_squares(found).abs()  # y = 2 x_1 + 3 x_2, and the smaller eigenvalue comes first
        tensor([[3., 2.]], dtype=torch.float64)
    """
    _, _, points = _checked(xs, ys)
    values, vectors = _eigen(points.mT @ points)
    products = (vectors.mT @ points.mT @ ys.double().unsqueeze(-1)).squeeze(-1)
    return Contexts(values.unsqueeze(1).expand(-1, xs.shape[-1], -1), products.diag_embed())


def _checked(xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All points but the last, their targets, and all points, float64."""
    if xs.ndim != 3 or ys.shape != xs.shape[:2] or xs.shape[1] < 2 or not xs.numel():
        raise ValueError(
            f"got points of shape {tuple(xs.shape)} and targets of shape {tuple(ys.shape)}; expected "
            "[sequences, points, d] and [sequences, points], at least two points"
        )
    if not (xs.isfinite().all() and ys.isfinite().all()):
        raise ValueError("got points or targets with NaN or infinite numbers; leave those sequences out")
    points = xs.double()
    return points[:, :-1], ys[:, :-1].double(), points


def _decomposed(squares: Tensor, products: Tensor, query: Tensor) -> Contexts:
    """S `[N, T, d, d]`, Xᵀy and x `[N, T, d]` in the eigenvectors of S."""
    values, vectors = _eigen(squares)
    query, products = ((vectors.mT @ x.unsqueeze(-1)).squeeze(-1) for x in (query, products))
    return Contexts(values, query * products)


def _eigen(squares: Tensor) -> tuple[Tensor, Tensor]:
    if not squares.isfinite().all():
        raise ValueError("got points whose squares overflow; expected smaller numbers: scale them down")
    values, vectors = torch.linalg.eigh(squares)
    return torch.where(values > _RANK * values.amax(-1, keepdim=True), values, torch.zeros_like(values)), vectors


def newton(given: Contexts, iterations: int) -> Tensor:
    """Predictions of Newton's iteration for the inverse of S, from its start on.

        M_0 = α S,  α = 1/‖S Sᵀ‖_F,   M_{k+1} = M_k (2 I − S M_k),   ŷ = xᵀ M_k Xᵀ y

    The error I − M_k S is squared by every iteration: (I − α S²)^(2^k).

    Args:
        given: the contexts.
        iterations: k of the last.

    Returns:
        `[iterations + 1, N, T]`, float64.

    Example:
        >>> given = contexts(torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]), torch.tensor([[2.0, 3.0, 0.0]]))
        >>> [round(y, 4) for y in newton(given, 4)[:, 0, -1].tolist()]
        [1.1852, 1.3626, 1.6814, 2.208, 2.9296]
    """
    start = given.values.pow(4).sum(-1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    weights = [given.values / start]
    for _ in range(iterations):
        weights.append(weights[-1] * (2.0 - given.values * weights[-1]))
    return torch.stack([given.predict(w) for w in weights])


def gradient_descent(given: Contexts, steps: Sequence[int], step: float | Tensor) -> Tensor:
    """Predictions of gradient descent on ½‖Xw − y‖² from w = 0, after some numbers of steps.

        w_{k+1} = w_k − η Xᵀ(X w_k − y) = S⁻¹ (I − (I − η S)^{k+1}) Xᵀ y

    Args:
        given: the contexts.
        steps: each k.
        step: η, one for all or one for each context, `[N, T]`.

    Returns:
        `[len(steps), N, T]`, float64.

    Raises:
        ValueError: the steps grow without bound, as η is above 2/λ.

    Example:
        >>> given = contexts(torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]), torch.tensor([[2.0, 3.0, 0.0]]))
        >>> gradient_descent(given, [0, 1, 2], 0.25)[:, 0, -1].tolist()
        [0.0, 1.75, 2.3125]
    """
    rate = torch.as_tensor(step, dtype=torch.float64, device=given.values.device)
    left = 1.0 - (rate.unsqueeze(-1) if rate.ndim else rate) * given.values
    if (left < -1.0).any():
        raise ValueError(
            f"got a step of {float(rate.max()):g} where S has an eigenvalue of {float(given.values.max()):g}; "
            f"gradient descent needs one below {float(2 / given.values.max()):g}"
        )
    inverse = _inverse(given.values)
    return torch.stack([given.predict((1.0 - left**k) * inverse) for k in steps])


def least_squares(given: Contexts) -> Tensor:
    """Predictions of the smallest weights with the least squared error, xᵀ S⁺ Xᵀ y, `[N, T]`, float64.

    Example:
        >>> least_squares(contexts(torch.tensor([[[2.0], [0.0], [3.0]]]), torch.tensor([[4.0, 1.0, 0.0]]))).tolist()
        [[0.0, 6.0]]
    """
    return given.predict(_inverse(given.values))


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1.0 / values, torch.zeros_like(values))


def error_similarity(errors: Tensor, others: Tensor) -> Tensor:
    """Mean over sequences of the cosine between the errors of one predictor and another along the sequence.

        sim(a, b) = mean_n ⟨e_a, e_b⟩ / (‖e_a‖ ‖e_b‖),   e = (ŷ_2 − y_2, …, ŷ_{T+1} − y_{T+1})

    Args:
        errors: of some predictors, `[A, N, T]`.
        others: of others, `[B, N, T]`.

    Returns:
        `[A, B]`; a predictor without an error counts as at right angles to all.

    Example:
        >>> one = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
        >>> error_similarity(one, torch.tensor([[[4.0, 3.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]))
        tensor([[0.9800, 0.0000]])
    """
    return torch.stack([cosine(row, others).mean(-1) for row in errors])
