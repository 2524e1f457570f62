"""Deep linear networks: what training does to each mode, and where it ends with weight decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import brentq

# Where a mode is s to rounding, in natural logarithms, and the steps up to there.
_SETTLED, _STEP = 37.0, 0.01
# A share of the whole time that is told from 0.
_LEAST = 1e-30


def mode_strength(target: float, depth: int, start: float, times: Sequence[float] | np.ndarray) -> np.ndarray:
    """Strength a of one mode of a product of matrices in training by gradient flow, from balanced matrices.

        τ da/dt = D a^{2 − 2/D} (s − a),   τ = 1 / learning rate

    Args:
        target: s > 0, the singular value of the input-output correlations of whitened inputs.
        depth: D, matrices in the product, from 1 on.
        start: a at time 0, above 0.
        times: t / τ, in any order, from 0 on.

    Returns:
        a at each time; in closed form for one and two matrices.

    Example:
        >>> mode_strength(2.0, 2, 0.01, [0.0, 5.0]).round(4).tolist()
        [0.01, 2.0]

    Reference: arXiv 1312.6120.
    """
    t = np.asarray(times, dtype=float)
    if depth == 1:
        return target + (start - target) * np.exp(-t)
    if depth == 2:
        gone = np.exp(-2 * target * t)
        return target / (1 + (target / start - 1) * gone)
    if start == target:
        return np.full_like(t, target)
    flow = _Flow(target, depth, start < target)
    w, until = flow.times(start, None)
    share = until / until[-1]
    told = np.append(True, np.diff(share) > _LEAST)  # rounding may hide the last steps behind a long wait
    curve = CubicHermiteSpline(share[told], w[told], until[-1] * flow.rate(flow.strength(w[told])))
    return flow.strength(np.where(t < until[-1], curve(np.minimum(t / until[-1], 1.0)), w[-1]))


def learning_time(target: float, depth: int, start: float, end: float) -> float:
    """Time over τ that a mode takes from one strength to another: ∫ da / (D a^{2 − 2/D} (s − a)).

    Args:
        target: s > 0.
        depth: D, from 1 on.
        start: above 0, on one side of s.
        end: between `start` and s.

    Returns:
        t / τ, at least 0.

    Example:
        >>> round(learning_time(1.0, 2, 0.01, 0.5), 4), round(0.5 * math.log(0.5 * 0.99 / (0.01 * 0.5)), 4)
        (2.2976, 2.2976)

    Reference: arXiv 1312.6120.
    """
    return float(_Flow(target, depth, start < target).times(start, end)[1][-1])


class _Flow(NamedTuple):
    """The flow in a number w in which it has neither a plateau nor a jump.

    From below s, the log-odds of the share of it that is reached; from above, minus the logarithm of what is left.
    """

    target: float
    depth: int
    below: bool

    def strength(self, w: np.ndarray) -> np.ndarray:
        """The strength a."""
        return self.target / (1 + np.exp(-w)) if self.below else self.target + np.exp(-w)

    def rate(self, a: np.ndarray) -> np.ndarray:
        """The derivative dw/dt."""
        return self.depth * a ** (1 - 2 / self.depth) * (self.target if self.below else a)

    def times(self, start: float, end: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Some w from one strength to another, or to s to rounding, and the time from the first to each."""
        settled = _SETTLED if self.below else _SETTLED - math.log(self.target)
        first, last = self._place(start), settled if end is None else self._place(end)
        w = np.linspace(first, last, math.ceil((last - first) / _STEP) + 2)
        x, weights = np.polynomial.legendre.leggauss(4)
        half = (w[1] - w[0]) / 2
        between = self.strength((w[:-1] + half)[:, None] + half * x)
        return w, np.append(0.0, np.cumsum(half / self.rate(between) @ weights))

    def _place(self, a: float) -> float:
        """The number w."""
        return math.log(a / (self.target - a)) if self.below else -math.log(a - self.target)


def collapse_strengths(
    counts: Sequence[int], matrices: int, weight_decay: float, feature_decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where training ends: squared lengths of each class's last-matrix row and of its mean feature.

    For min (1/2N) ‖W_M … W_1 H − Y‖² + (λ_W/2) Σ‖W_m‖² + (λ_H/2) ‖H‖², without a bias, n_k of N samples in class k,

        b = M N (N λ_W^M λ_H)^{1/M},   x_k the largest root of b/n_k = M x^{M−1} / (x^M + 1)²
        ‖w_k‖² = s_k^{2M} = N λ_H x_k^M,   ‖h_k‖² = s_k^{2M} / (s_k^{2M} + N λ_H)²

    with w_k the rows of W_M … W_1, all at right angles, and x_k = 0 where no feature has less energy, n_k/(x^M+1) + b x
    against n_k: the class has collapsed to nothing.

    Args:
        counts: n_k, samples of each class.
        matrices: M, from 1 on.
        weight_decay: λ_W > 0, of every matrix.
        feature_decay: λ_H > 0.

    Returns:
        ‖w_k‖² and ‖h_k‖², `[K]` each.

    Example:
        >>> w, h = collapse_strengths([40, 20, 10, 3], 1, 5e-3, 1e-4)
        >>> w.round(4).tolist()
        [0.8871, 0.6252, 0.4399, 0.2376]

    Reference: arXiv 2301.00437; the comparison of energies is derived here, for a root may be a local optimum only.
    """
    total = sum(counts)
    b = matrices * total * (total * weight_decay**matrices * feature_decay) ** (1 / matrices)
    x = np.array([_strength(b / n, matrices) for n in counts])
    w = total * feature_decay * x**matrices
    return w, w / (w + total * feature_decay) ** 2


def survival_count(counts: Sequence[int], matrices: int, weight_decay: float, feature_decay: float) -> float:
    """Samples that a class needs for its features to survive: n > b / max_x (1 − 1/(x^M + 1)) / x.

        n > b M / (M − 1)^{(M − 1)/M},   for M = 1: n > N² λ_W λ_H

    Example:
        >>> round(survival_count([40, 20, 10, 3], 1, 5e-3, 1e-4), 6)
        0.002664

    Reference: derived here.
    """
    total = sum(counts)
    b = matrices * total * (total * weight_decay**matrices * feature_decay) ** (1 / matrices)
    return b * _least(matrices)


def _least(matrices: int) -> float:
    """One over the largest b/n at which features have less energy than none."""
    return 1.0 if matrices == 1 else matrices / (matrices - 1) ** ((matrices - 1) / matrices)


def _strength(ratio: float, matrices: int) -> float:
    """The x of least energy 1/(x^M + 1) + ratio · x."""
    if ratio * _least(matrices) >= 1:
        return 0.0
    if matrices == 1:
        return ratio**-0.5 - 1

    def slope(x: float) -> float:
        return ratio - matrices * x ** (matrices - 1) / (x**matrices + 1) ** 2

    # Between the x where features begin to pay and any large one the slope of the energy changes its sign once.
    low = (matrices - 1) ** (1 / matrices)
    high = 2.0 * low + 1
    while slope(high) < 0:
        high *= 2
    return float(brentq(slope, low, high, xtol=1e-14, rtol=1e-14))
