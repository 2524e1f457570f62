"""How much a network's test error can exceed its training error, layer by layer, by divergences and distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import chi, norm, wasserstein_distance

# Points of each axis of the integral over what training can find, and standard deviations that it reaches.
_NODES, _REACH = 100, 9.0
# Rows of a product of matrices that are smaller than this share of the largest are rounding.
_RANK = 1e-10


# Binary classes N(± μ, σ² I), and a linear network whose matrices' product is the mean of Y X over n samples


class MeanClassifier(NamedTuple):
    """What the mean ŵ of n samples Y X, X given Y being N(Y μ, σ² I), is expected to be.

    Attributes:
        along: E (ŵᵀ(ŵ − μ))² / ‖ŵ‖², its error along itself.
        size: E ‖ŵ‖².
        train: the share of training samples that sign ŵᵀX gets wrong.
        test: the share of new samples.
    """

    along: float
    size: float
    train: float
    test: float


def mean_classifier(dimensions: int, samples: int, signal: float, noise: float) -> MeanClassifier:
    """Expectations over ŵ = μ + ε, ε ~ N(0, σ²/n I): an integral over ε along μ and over its length across.

    A sample that was trained on is N(ŵ, σ² (1 − 1/n) I) given ŵ, so that it errs with Φ(−‖ŵ‖/(σ √(1 − 1/n))); a new one
    with Φ(−μᵀŵ/(σ ‖ŵ‖)).

    Args:
        dimensions: d.
        samples: n, from 2 on.
        signal: ‖μ‖ > 0.
        noise: σ > 0.

    Example:
        >>> found = mean_classifier(50, 20, 1.0, 1.0)
        >>> found.train < 0.16 < found.test  # the best possible classifier errs at Φ(−1) = 0.159
        True

    Reference: derived here.
    """
    scale = noise / math.sqrt(samples)
    ahead, by_ahead = _nodes(-_REACH, _REACH, norm.pdf)
    aside, by_aside = np.zeros(1), np.ones(1)
    if dimensions > 1:
        usual = math.sqrt(dimensions - 1)
        aside, by_aside = _nodes(max(0.0, usual - _REACH), usual + _REACH, chi(dimensions - 1).pdf)
    along, across = signal + scale * ahead[:, None], (scale * aside) ** 2
    square = along**2 + across
    length = np.sqrt(square)
    weight = by_ahead[:, None] * by_aside

    def mean(x: np.ndarray) -> float:
        return float((weight * x).sum())

    return MeanClassifier(
        along=mean((along * (along - signal) + across) ** 2 / square),
        size=signal**2 + dimensions * scale**2,
        train=mean(norm.cdf(-length / (noise * math.sqrt(1 - 1 / samples)))),
        test=mean(norm.cdf(-signal * along / (noise * length))),
    )


def _nodes(low: float, high: float, density: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Points between two ends, and how much each counts for a distribution that has nearly all of itself there."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    points = low + (high - low) * (points + 1) / 2
    weights = weights * density(points)
    return points, weights / weights.sum()


def expected_error(found: MeanClassifier, rank: int, dimensions: int, samples: int, noise: float) -> float:
    """E ‖P (ŵ − μ)‖² for P onto `rank` directions, ŵ one of them and the others drawn at random.

    Example:
        >>> found = mean_classifier(8, 4, 1.0, 2.0)
        >>> round(expected_error(found, 8, 8, 4, 2.0), 9), expected_error(found, 1, 8, 4, 2.0) == found.along
        (8.0, True)
    """
    if dimensions == 1:
        return found.along
    whole = dimensions * noise**2 / samples
    return found.along + (rank - 1) / (dimensions - 1) * (whole - found.along)


def gaussian_divergence(rank: int, square: float, samples: int, noise: float) -> float:
    """KL of a training sample given ŵ, N(Pŵ, σ² (1 − 1/n) I), from a new one, N(Pμ, σ² I), in `rank` dimensions, nat.

        ½ [‖P(ŵ − μ)‖²/σ² − r/n − r ln(1 − 1/n)]

    Any invertible map of the r dimensions gives the same.

    Args:
        rank: r.
        square: ‖P(ŵ − μ)‖², or its mean.
        samples: n, from 2 on.
        noise: σ.

    Example:
        >>> whole = gaussian_divergence(8, 8 * 4.0 / 4, 4, 2.0)  # of X itself, the information I(X, Y; ŵ)
        >>> round(whole + 8 / 2 * math.log(1 - 1 / 4), 12)
        0.0
    """
    return 0.5 * (square / noise**2 - rank / samples - rank * math.log1p(-1 / samples))


def divergence_bound(divergence: float, deviation: float = 0.5) -> float:
    """|E test − E train loss| ≤ s √(2 KL), with the loss s-sub-Gaussian: 1/2 for one between 0 and 1.

    Example:
        >>> divergence_bound(0.5)
        0.5
    """
    return deviation * math.sqrt(2 * max(divergence, 0.0))


def layer_divergences(
    matrices: Sequence[np.ndarray],
    found: np.ndarray,
    mean: np.ndarray,
    *,
    samples: int,
    noise: float,
    injected: float = 0.0,
) -> list[float]:
    """KL of a training sample from a new one at every layer of a linear network that was trained to ŵ, in nat.

    Args:
        matrices: W_1 … W_L, `[d_l, d_{l−1}]`, that depend on the samples through ŵ alone and give it away.
        found: ŵ, `[d]`.
        mean: μ, `[d]`.
        samples: n.
        noise: σ.
        injected: deviation of Gaussian noise that is added behind every matrix.

    Returns:
        KL of the input and behind each matrix, L + 1 of them; none is larger than the one before.

    Example:
        >>> one = np.eye(1)
        >>> layer_divergences([one], np.array([2.0]), np.array([1.0]), samples=2, noise=1.0)[0] == gaussian_divergence(
        ...     1, 1.0, 2, 1.0
        ... )
        True
    """
    through, added = np.eye(len(mean)), np.zeros((len(mean), len(mean)))
    divergences = [_divergence(through, added, found - mean, samples, noise)]
    for matrix in matrices:
        through = matrix @ through
        added = matrix @ added @ matrix.T + injected**2 * np.eye(len(matrix))
        divergences.append(_divergence(through, added, found - mean, samples, noise))
    return divergences


def _divergence(through: np.ndarray, added: np.ndarray, error: np.ndarray, samples: int, noise: float) -> float:
    if not added.any():
        _, values, rows = np.linalg.svd(through, full_matrices=False)
        kept = rows[values > _RANK * values[0]]
        return gaussian_divergence(len(kept), float(((kept @ error) ** 2).sum()), samples, noise)
    signal = noise**2 * through @ through.T
    new, trained = signal + added, (1 - 1 / samples) * signal + added
    moved = through @ error
    ratio = np.linalg.solve(new, trained)
    square = float(moved @ np.linalg.solve(new, moved))
    return 0.5 * (square + float(np.trace(ratio)) - len(ratio) - float(np.linalg.slogdet(ratio)[1]))


# How much of a divergence a random layer can let through: KL behind it ≤ η · KL before it


def dropout_contraction(rate: float, width: int) -> float:
    """η = 1 − δ^d of dropout with rate δ on d units: all that is told is lost only where all units are dropped.

    Example:
        >>> dropout_contraction(0.5, 2)
        0.75
    """
    return 1 - rate**width


def dropconnect_contraction(rate: float, inputs: int, outputs: int) -> float:
    """η = 1 − δ^(d_in d_out) of a layer that drops each weight with rate δ.

    Example:
        >>> dropconnect_contraction(0.5, 1, 2)
        0.75
    """
    return 1 - rate ** (inputs * outputs)


def noise_contraction(deviation: float, diameter: float) -> float:
    """η = 1 − 2 Q(D/2s) of Gaussian noise of deviation s on activations that are no more than D apart.

    Of tanh of d units D = 2 √d. With noise of 0 nothing is lost, with D = 0 all is.

    Example:
        >>> round(noise_contraction(1.0, 2.0), 4)  # 1 − 2 Q(1)
        0.6827
    """
    return 1.0 if deviation == 0 else float(1 - 2 * norm.sf(diameter / (2 * deviation)))


# Distances of samples


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """W_1 of two sets of as many samples: the mean distance of the best pairs, exactly.

    Args:
        one: `[n, d]`.
        other: `[n, d]`.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> wasserstein(np.array([[0.0], [1.0]]), np.array([[3.0], [1.0]]))
        1.5
    """
    if one.ndim != 2 or one.shape != other.shape:
        raise ValueError(f"got samples {one.shape} and {other.shape}; expected as many of both, [n, d]")
    if one.shape[1] == 1:
        return float(wasserstein_distance(one[:, 0], other[:, 0]))
    distances = cdist(one, other)
    return float(distances[linear_sum_assignment(distances)].mean())


def sliced_wasserstein(one: np.ndarray, other: np.ndarray, slices: int = 100, seed: int = 0) -> float:
    """The mean over random directions of W_1 of the samples along them: below W_1, and cheap for many samples.

    Args:
        one: `[n, d]`.
        other: `[m, d]`.
        slices: how many directions.
        seed: of the directions.

    Example:
        >>> round(sliced_wasserstein(np.zeros((5, 1)), np.ones((7, 1))), 12)
        1.0
    """
    directions = np.random.default_rng(seed).standard_normal((one.shape[1], slices))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.mean([wasserstein_distance(one @ u, other @ u) for u in directions.T]))


def gaussian_wasserstein(rank: int, square: float, samples: int, noise: float) -> float:
    """W_2 ≥ W_1 of N(Pŵ, σ² (1 − 1/n) I) and N(Pμ, σ² I) in `rank` dimensions, √(‖P(ŵ − μ)‖² + r σ² (1 − √(1 − 1/n))²).

    Example:
        >>> gaussian_wasserstein(1, 9.0, 10**12, 1.0)
        3.0
    """
    return math.sqrt(square + rank * (noise * (1 - math.sqrt(1 - 1 / samples))) ** 2)


def suffix_products(norms: Sequence[float] | np.ndarray) -> np.ndarray:
    """Π_{j > l} ‖W_j‖ for l = 0 … L: how much what follows a layer can stretch what it gives.

    Example:
        >>> suffix_products([2.0, 3.0]).tolist()
        [6.0, 3.0, 1.0]
    """
    return np.append(np.cumprod(np.asarray(norms, dtype=float)[::-1])[::-1], 1.0)
