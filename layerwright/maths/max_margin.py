"""Attention that picks the best token of every sequence with the largest margin: a support vector machine."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

# No margin above this share of the pairs' size is no margin.
_MARGIN = 1e-6
# Interior point: the gap between the norm and its bound, over the norm, that is enough; by how much a round narrows it;
# how near to the central path a point has to be, by Newton's decrement; rounds, and steps of Newton in each, at most.
_GAP, _NARROW, _NEAR, _ROUNDS, _STEPS = 1e-6, 0.1, 1e-6, 20, 200


class Pairs(NamedTuple):
    """What each token that is not the best has to be told from, one row each.

    Attributes:
        differences: x_best − x_t, `[C, d]`.
        queries: z of the sequence, `[C, d]`.
        sequences: whose they are, `[C]`.
        tokens: t, `[C]`.
    """

    differences: np.ndarray
    queries: np.ndarray
    sequences: np.ndarray
    tokens: np.ndarray

    def products(self, weights: np.ndarray) -> np.ndarray:
        """(x_best − x_t)ᵀ W z, by how much the best token is ahead, `[C]`."""
        return ((self.differences @ weights) * self.queries).sum(1)

    def combined(self, multipliers: np.ndarray) -> np.ndarray:
        """Σ α (x_best − x_t) zᵀ, `[d, d]`."""
        return (self.differences * multipliers[:, None]).T @ self.queries


def token_pairs(tokens: np.ndarray, queries: np.ndarray, best: np.ndarray) -> Pairs:
    """Every token beside the best one of its sequence.

    Args:
        tokens: x, `[n, T, d]`, at least two to a sequence.
        queries: z, `[n, d]`.
        best: index of the best token of each sequence, `[n]`.

    Raises:
        ValueError: shapes that do not fit, an index that is no token's, numbers that are not finite, a query of zeros,
            or a token that equals the best one.

    Example:
        >>> token_pairs(np.array([[[1.0, 0.0], [0.0, 1.0]]]), np.array([[1.0, 1.0]]), np.array([1])).differences
        array([[-1.,  1.]])
    """
    if tokens.ndim != 3 or tokens.shape[1] < 2 or queries.shape != (len(tokens), tokens.shape[2]):
        raise ValueError(
            f"got tokens {tokens.shape} and queries {queries.shape}; expected [sequences, tokens, d], two tokens or "
            "more each, and [sequences, d]"
        )
    if best.shape != (len(tokens),) or not ((best >= 0) & (best < tokens.shape[1])).all():
        raise ValueError(
            f"got best {best.tolist()}; expected the index of a token, 0 to {tokens.shape[1] - 1}, of each"
        )
    if not (np.isfinite(tokens).all() and np.isfinite(queries).all()):
        raise ValueError("got tokens or queries with NaN or infinite numbers; leave those sequences out")
    if not queries.any(1).all():
        raise ValueError(
            f"got a query of zeros in sequence {int((~queries.any(1)).argmax())}; no weights change its scores"
        )
    sequences, others = np.nonzero(np.arange(tokens.shape[1]) != best[:, None])
    differences = tokens[sequences, best[sequences]] - tokens[sequences, others]
    if not differences.any(1).all():
        same = int((~differences.any(1)).argmax())
        raise ValueError(
            f"got token {others[same]} of sequence {sequences[same]} equal to the best one; no weights tell them "
            "apart, leave it out"
        )
    return Pairs(differences, queries[sequences], sequences, others)


class Separator(NamedTuple):
    """The weights of least norm with (x_best − x_t)ᵀ W z ≥ 1 for all pairs.

    Attributes:
        weights: W, `[d, d]`; their direction is what matters.
        multipliers: α ≥ 0 of each pair, `[C]`; above 0 only where a product is 1, at the support tokens.
        norm: of W, the one that is least; the margin is one over it.
        bound: what the norm is proven to be no less than.
    """

    weights: np.ndarray
    multipliers: np.ndarray
    norm: float
    bound: float


def contradiction(pairs: Pairs) -> np.ndarray | None:
    """Shares of pairs that add up to nothing, Σ α (x_best − x_t) zᵀ = 0, as no weights put all best tokens ahead.

    Returns:
        α ≥ 0, `[C]`, that sum to 1; None where there are none, and all best tokens can be picked at once.

    Example:
        >>> x, z = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0])  # the same query asks for both tokens
        >>> contradiction(token_pairs(np.stack([x, x]), np.stack([z, z]), np.array([0, 1]))).round(9)
        array([0.5, 0.5])
    """
    shares, rest = _nearest(pairs)
    return shares / shares.sum() if rest < _MARGIN**2 else None


def frobenius_margin(pairs: Pairs) -> Separator | None:
    """The W of least ‖W‖_F, where gradient descent on W goes in direction; W = Σ α (x_best − x_t) zᵀ.

    Returns:
        it; None where no weights put all best tokens ahead (`contradiction`).

    Example:
        >>> tokens = np.array([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> frobenius_margin(token_pairs(tokens, np.array([[0.0, 2.0]]), np.array([0]))).weights.round(6)
        array([[0.  , 0.25],
               [0.  , 0.  ]])

    Reference: arXiv 2308.16898. The problem is one of least distance, and solved as non-negative least squares.
    """
    shares, rest = _nearest(pairs)
    if rest < _MARGIN**2:
        return None
    multipliers = shares / rest / _size(pairs)
    weights = pairs.combined(multipliers)
    least = pairs.products(weights).min()  # 1 up to rounding
    norm = float(np.linalg.norm(weights))
    return Separator(weights / least, multipliers / least, norm / least, float(multipliers.sum()) / norm)


def _size(pairs: Pairs) -> float:
    """Mean of ‖x_best − x_t‖² ‖z‖²."""
    return float(((pairs.differences**2).sum(1) * (pairs.queries**2).sum(1)).mean())


def _nearest(pairs: Pairs) -> tuple[np.ndarray, float]:
    """The α ≥ 0 of least ‖Σ α A / size‖² + (Σ α − 1)², with A the pairs' products, and what is left of 1."""
    gram = (pairs.differences @ pairs.differences.T) * (pairs.queries @ pairs.queries.T) / _size(pairs)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-13 * values[-1]
    rows = np.vstack([(vectors[:, kept] * np.sqrt(values[kept])).T, np.ones(len(gram))])
    goal = np.zeros(len(rows))
    goal[-1] = 1.0
    shares, _ = nnls(rows, goal, maxiter=30 * len(gram))
    return shares, 1.0 - float(shares.sum())


def nuclear_margin(pairs: Pairs) -> Separator | None:
    """The W of least nuclear norm Σσ, where gradient descent on the factors of W = K Qᵀ goes in direction.

        max Σ α   with ‖Σ α (x_best − x_t) zᵀ‖ ≤ 1, α ≥ 0

    is the same problem seen from the other side. It is solved from the inside, along μ → 0 of

        Σ α + μ ln det (I − N Nᵀ) + μ Σ ln α,   N = Σ α (x_best − x_t) zᵀ,   W = 2μ (I − N Nᵀ)⁻¹ N

    whose W keeps all products above 1, so that Σ α ≤ least norm ≤ Σσ at every step.

    Returns:
        it; None where no weights put all best tokens ahead.

    Example:
        >>> tokens = np.array([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> found = nuclear_margin(token_pairs(tokens, np.array([[0.0, 2.0]]), np.array([0])))
        >>> abs(found.weights).round(5).tolist(), abs(found.norm - found.bound) < 1e-6
        ([[0.0, 0.25], [0.0, 0.0]], True)

    Reference: arXiv 2308.16898; the interior point is derived here.
    """
    if contradiction(pairs) is not None:
        return None
    whole = np.ones(len(pairs.differences))
    alpha = whole * 0.5 / np.linalg.norm(pairs.combined(whole), 2)
    mu = 100 * float(alpha.sum())  # so large that the first point is the middle of all that are allowed
    for _ in range(_ROUNDS):
        alpha, weights = _centre(pairs, alpha, mu)
        found = _certified(pairs, alpha, weights)
        if 0 <= found.norm - found.bound <= _GAP * found.norm:
            return found
        mu *= _NARROW
    raise ValueError(
        "got pairs whose least nuclear norm cannot be found: some are too alike, or too near contradiction"
    )


def _certified(pairs: Pairs, alpha: np.ndarray, weights: np.ndarray) -> Separator:
    """Weights scaled to a least product of 1, and multipliers to a spectral norm of 1: each bounds the other."""
    values = np.linalg.svd(weights, compute_uv=False)
    least, top = float(pairs.products(weights).min()), float(np.linalg.norm(pairs.combined(alpha), 2))
    return Separator(weights / least, alpha / top, float(values.sum()) / least, float(alpha.sum()) / top)


def _centre(pairs: Pairs, alpha: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method for the point of the central path at μ, from a point inside, and W there."""
    x, z, d = pairs.differences, pairs.queries, pairs.differences.shape[1]
    for _ in range(_STEPS):
        inverse = _inverse(pairs, alpha)
        slope = _slope(pairs, alpha, mu, inverse)
        mixed = x @ inverse[:d, d:] @ z.T
        curvature = 2 * ((x @ inverse[:d, :d] @ x.T) * (z @ inverse[d:, d:] @ z.T) + mixed * mixed.T)
        scaled = np.eye(len(alpha)) + alpha[:, None] * curvature * alpha  # of ln α: α may be of many sizes
        step = alpha * np.linalg.solve(scaled, alpha * slope)
        decrement = max(float(slope @ step), 0.0)
        # A step that is damped by this much stays inside and helps, as both logarithms are self-concordant; twice as
        # long helps more where the way is still up there.
        length = 1 / (1 + math.sqrt(decrement))
        while length <= 0.5 and _rises(pairs, alpha + 2 * length * step, mu, step):
            length *= 2
        alpha = alpha + length * step
        if decrement < _NEAR:
            break
    return alpha, -2 * mu * _inverse(pairs, alpha)[:d, d:]


def _inverse(pairs: Pairs, alpha: np.ndarray) -> np.ndarray:
    """The inverse of [[I, N], [Nᵀ, I]], whose determinant is that of I − N Nᵀ."""
    n = pairs.combined(alpha)
    identity = np.eye(len(n))
    return np.linalg.inv(np.block([[identity, n], [n.T, identity]]))


def _slope(pairs: Pairs, alpha: np.ndarray, mu: float, inverse: np.ndarray) -> np.ndarray:
    d = pairs.differences.shape[1]
    return 1 / mu + 2 * pairs.products(inverse[:d, d:]) + 1 / alpha


def _rises(pairs: Pairs, alpha: np.ndarray, mu: float, step: np.ndarray) -> bool:
    """Whether a point is inside, and the way on is up."""
    if not (alpha > 0).all() or np.linalg.norm(pairs.combined(alpha), 2) >= 1:
        return False
    return float(_slope(pairs, alpha, mu, _inverse(pairs, alpha)) @ step) > 0
