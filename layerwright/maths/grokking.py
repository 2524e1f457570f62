"""Which features of modular addition a hidden unit finds by itself: maxima of an energy of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy import sparse

# The published code takes this many times M ln M samples to be the least that features emerge from.
CRITICAL_RATIO = 2.7482
# A unit generalises where one frequency holds more than this share of its weights' square.
PURE = 0.5
_STEPS, _TOLERANCE = 2000, 1e-5


class Addition:
    """Samples (i, j) of i + j modulo M, as a hidden unit sees them: it reads both numbers one-hot, 2M inputs.

    Args:
        modulus: M, from 3 on.
        samples: places of the samples in the table of all pairs, `i M + j`, all different, `[n]`.
        labels: of the samples, whole numbers below M; left out, those of addition.

    Raises:
        ValueError: no modulus, samples outside the table, one of them twice, or labels that do not fit.
    """

    def __init__(self, modulus: int, samples: np.ndarray, labels: np.ndarray | None = None) -> None:
        samples = np.asarray(samples)
        if not (isinstance(modulus, int) and modulus >= 3):
            raise ValueError(f"got modulus {modulus}; expected a whole number from 3 on")
        if samples.ndim != 1 or not samples.size or samples.dtype.kind not in "iu":
            raise ValueError(f"got samples of type {samples.dtype} and shape {samples.shape}; expected whole numbers")
        if samples.min() < 0 or samples.max() >= modulus**2 or len(np.unique(samples)) < len(samples):
            raise ValueError(f"got samples outside 0 … {modulus**2 - 1}, or one twice; expected different pairs")
        first, second = np.divmod(samples, modulus)
        labels = (first + second) % modulus if labels is None else np.asarray(labels)
        if labels.shape != samples.shape or labels.min() < 0 or labels.max() >= modulus:
            raise ValueError(f"got labels {labels.shape} for {len(samples)} samples; expected one below {modulus} each")
        self.modulus, self.first, self.second, self.labels = modulus, first, second, labels

    def __len__(self) -> int:
        """Samples, n."""
        return len(self.labels)

    @cached_property
    def _inputs(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """X, `[n, 2M]`, and its transpose."""
        columns = np.stack([self.first, self.modulus + self.second], 1)
        return _one_hot(columns, 2 * self.modulus)

    @cached_property
    def _outputs(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Y, `[n, M]`, and its transpose."""
        return _one_hot(self.labels[:, None], self.modulus)

    def energy(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E of some units and its gradient.

            E(w) = ½ ‖Ỹᵀ (X w)²‖²,   Ỹ the one-hot labels less their mean over samples

        Args:
            weights: w of each unit, `[units, 2M]`.

        Returns:
            E, `[units]`, and ∂E/∂w, `[units, 2M]`.

        Example:
            >>> task = Addition(5, np.arange(25))
            >>> w = pure_features(5, 1, np.random.default_rng(0))
            >>> round(float(task.energy(w)[0][0]), 6)  # M/4, the largest that there is
            1.25
        """
        (x, x_t), (y, y_t) = self._inputs, self._outputs
        z = x @ weights.T
        share = (np.bincount(self.labels, minlength=self.modulus) / len(self))[:, None]
        sums = y_t @ (z * z)
        found = sums - share * sums.sum(0)
        back = y @ found - (share * found).sum(0)
        return 0.5 * (found**2).sum(0), 2 * (x_t @ (z * back)).T

    def ascend(self, weights: np.ndarray) -> np.ndarray:
        """Where ascent of E on the sphere ‖w‖ = 1 ends from some weights.

            w ← (w + ∇E/‖∇E‖) / ‖…‖

        E grows with each step. By ∇E alone, a unit's two halves would swap their sizes for ever.

        Args:
            weights: of each unit, `[units, 2M]`, none of them zero.

        Returns:
            the maxima, `[units, 2M]`, after at most 2000 steps.
        """
        w = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        moving = np.arange(len(w))
        for _ in range(_STEPS):
            before, gradient = w[moving], self.energy(w[moving])[1]
            length = np.linalg.norm(gradient, axis=1, keepdims=True)
            after = before + gradient / np.where(length > 0, length, 1.0)
            w[moving] = after / np.linalg.norm(after, axis=1, keepdims=True)
            moving = moving[np.abs(w[moving] - before).max(1) > _TOLERANCE]
            if not moving.size:
                break
        return w


def fourier_purity(weights: np.ndarray) -> np.ndarray:
    """Share of a unit's squared weights that one frequency holds, the same for both numbers, in (0, 1].

        max_{k ≥ 1} (|û_k|² + |v̂_k|²) / ‖w‖²,   w = (u, v)

    Args:
        weights: `[units, 2M]`.

    Example:
        >>> fourier_purity(pure_features(7, 2, np.random.default_rng(0))).round(6).tolist()
        [1.0, 1.0]
    """
    modulus = weights.shape[1] // 2
    halves = weights.reshape(len(weights), 2, modulus)
    power = (np.abs(np.fft.fft(halves, axis=2)) ** 2).sum(1) / modulus
    # Frequencies k and M − k are one.
    both = power[:, 1:] + power[:, :0:-1] * (np.arange(1, modulus) * 2 != modulus)
    return np.asarray(both.max(1) / (weights**2).sum(1))


def pure_features(modulus: int, units: int, rng: np.random.Generator) -> np.ndarray:
    """Waves of one frequency in both numbers, at phases of their own: maxima of E on all samples, where it is M/4.

    Args:
        modulus: M.
        units: how many.
        rng: draws frequencies and phases.

    Returns:
        weights of length 1, `[units, 2M]`.
    """
    frequency = rng.integers(1, (modulus + 1) // 2, (units, 1, 1))
    phases = rng.uniform(0, 2 * math.pi, (units, 2, 1))
    waves = np.cos(2 * math.pi * frequency * np.arange(modulus) / modulus + phases) / math.sqrt(modulus)
    return np.asarray(waves.reshape(units, 2 * modulus))


def emerged(task: Addition, units: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where units end that begin as pure features, and where others from random weights, `[units, 2M]` each."""
    starts = np.concatenate([pure_features(task.modulus, units, rng), rng.standard_normal((units, 2 * task.modulus))])
    ends = task.ascend(starts)
    return ends[:units], ends[units:]


def share_of_features(weights: np.ndarray) -> float:
    """Share of units that are features: one frequency holds over half of their square."""
    return float((fourier_purity(weights) > PURE).mean())


def threshold(share: Callable[[int], float], low: int, high: int, precision: float = 0.03) -> float:
    """Samples from which a share that grows with them is half or more, by halving on a log scale.

    Args:
        share: of a number of samples.
        low: samples at which it is taken to be less.
        high: samples at which it is taken to be half or more.
        precision: relative, of the number.

    Example:
        >>> round(threshold(lambda n: n / 1000, 10, 1000, 1e-3), -1)
        500.0
    """
    left, right = math.log(low), math.log(high)
    while right - left > precision:
        middle = (left + right) / 2
        left, right = (left, middle) if share(round(math.exp(middle))) >= 0.5 else (middle, right)
    return math.exp((left + right) / 2)


def _one_hot(columns: np.ndarray, width: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    n, each = columns.shape
    made = sparse.csr_matrix((np.ones(n * each), columns.ravel(), np.arange(0, n * each + 1, each)), (n, width))
    return made, made.T.tocsr()
