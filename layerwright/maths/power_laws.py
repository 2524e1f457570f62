"""Power laws with a floor, and how far data fix their exponent."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

# Exponents that are looked at. An interval that reaches an end of them is open there.
_EXPONENTS = np.geomspace(0.005, 20.0, 400)
# Squares of relative residuals below this are rounding.
_ROUNDING = 1e-24


class PowerLaw(NamedTuple):
    """y = floor + scale · x^−exponent.

    Attributes:
        exponent: a.
        low: lower end of its confidence interval; 0 where data are as well explained by no power.
        high: upper end; infinite where data are as well explained by any larger one.
        floor: y at infinite x.
        scale: c, at x = 1.
        error: root mean square of the relative residuals, the points less the parameters under the mean.
    """

    exponent: float
    low: float
    high: float
    floor: float
    scale: float
    error: float

    def at(self, x: float) -> float:
        """Y of the law at x."""
        return float(self.floor + self.scale * x**-self.exponent)


def fit_power_law(x: np.ndarray, y: np.ndarray, floor: float | None = None, confidence: float = 0.95) -> PowerLaw:
    """Fit y = y_∞ + c x^−a to numbers with relative errors that are alike.

        min S(a),   S(a) = min over c ≥ 0, y_∞ ≥ 0 of Σ ((y_∞ + c x_i^−a) / y_i − 1)²

    For each a the rest is linear, so that no start can lead astray. The interval holds each a of
    S(a) ≤ S_min (1 + F / (n − p)), p parameters, F the quantile of Fisher's distribution with 1 and n − p degrees.

    Args:
        x: sizes above 0, `[n]`.
        y: losses above 0, `[n]`; several at one size may stand there.
        floor: y_∞ where it is known, from 0 on and below all y; left out, it is fitted.
        confidence: of the interval, below 1.

    Raises:
        ValueError: arrays of unlike length, numbers not above 0, a floor that is none, fewer than 4 different sizes (3
            with a floor), or losses that do not fall.

    Example:
        >>> found = fit_power_law(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([4.0, 3.0, 2.5, 2.25, 2.125]))
        >>> round(found.exponent, 6), round(found.floor, 6), round(found.scale, 6)
        (1.0, 2.0, 2.0)
    """
    x, y = _checked(x, y, floor)
    middle = float(np.exp(np.log(x).mean()))

    def square(log_a: float) -> float:
        return float(_linear(np.exp([log_a]), x / middle, y, floor)[0][0])

    logs = np.log(_EXPONENTS)
    best = int(_linear(_EXPONENTS, x / middle, y, floor)[0].argmin())
    around = logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)]
    log_a = float(minimize_scalar(square, bounds=around, method="bounded", options={"xatol": 1e-12}).x)
    exponents = np.sort(np.append(_EXPONENTS, math.exp(log_a)))
    squares, floors, scales = _linear(exponents, x / middle, y, floor)
    here = int(exponents.searchsorted(math.exp(log_a)))
    if not scales[here] > 0:
        raise ValueError("got losses that do not fall with the size; expected a power law to fit")
    freedom = len(x) - 2 - (floor is None)
    bound = (squares[here] + _ROUNDING) * (1 + float(stats.f.ppf(confidence, 1, freedom)) / freedom)
    low, high = _interval(square, np.log(exponents), squares, bound)
    a, error = float(exponents[here]), math.sqrt(squares[here] / freedom)
    return PowerLaw(a, low, high, float(floors[here]), float(scales[here] * middle**a), error)


def tail_exponent(values: np.ndarray, first: int, last: int, bins: int = 8) -> float:
    """The a of values i^−(1 + a), i the rank from 1 on, over some ranks: by means over bins alike on a log scale.

    Args:
        values: from 0 on, `[n]`, by rank.
        first: the first rank, from 1 on.
        last: the last rank, up to n.
        bins: how many there are.

    Raises:
        ValueError: ranks outside the values, fewer than two bins of them, or a bin of zeros.

    Example:
        >>> round(tail_exponent(np.arange(1, 1001.0) ** -1.5, 20, 200), 2)
        0.5
    """
    edges = np.unique(np.geomspace(first, last + 1, bins + 1).round().astype(int)) if 1 <= first < last else np.empty(0)
    if len(edges) < 3 or last > len(values):
        raise ValueError(f"got ranks {first} to {last} of {len(values)}; expected more than one bin of ranks")
    means = np.array([values[a - 1 : b - 1].mean() for a, b in pairwise(edges)])
    if not (means > 0).all():
        raise ValueError(f"got values of 0 between ranks {first} and {last}; expected a power law")
    middles = [np.log(np.arange(a, b)).mean() for a, b in pairwise(edges)]
    return float(-np.polyfit(middles, np.log(means), 1)[0] - 1)


def _checked(x: np.ndarray, y: np.ndarray, floor: float | None) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"got sizes {x.shape} and losses {y.shape}; expected two arrays of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError("got sizes or losses that are not finite or not above 0; leave those points out")
    needed, different = (4 if floor is None else 3), len(np.unique(x))
    if different < needed:
        raise ValueError(f"got {different} different sizes; expected at least {needed} to fit a power law to")
    if floor is not None and not 0 <= floor < y.min():
        raise ValueError(f"got a floor of {floor:g} for losses from {y.min():g} on; expected one from 0 on, below all")
    return x, y


def _linear(
    exponents: np.ndarray, x: np.ndarray, y: np.ndarray, floor: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S of each exponent a, and the y_∞ and c it has there: the least of Σ (f w + c u − 1)², w = 1/y, u = x^−a/y."""
    w, u = 1 / y, x ** -exponents[:, None] / y
    uu, uw, ww = (u * u).sum(1), u @ w, w @ w
    determinant = uu * ww - uw**2
    # u and w are parallel where the power is next to 0. Above the mean the floor would want a c below 0.
    apart = determinant > 1e-15 * uu * ww
    free = (uu * w.sum() - uw * u.sum(1)) / np.where(apart, determinant, 1.0)
    f = np.full_like(uu, floor) if floor is not None else np.where(apart, free, 0.0).clip(0.0, w.sum() / ww)
    c = ((u.sum(1) - f * uw) / uu).clip(0.0)
    return ((f[:, None] * w + c[:, None] * u - 1) ** 2).sum(1), f, c


def _interval(
    square: Callable[[float], float], logs: np.ndarray, squares: np.ndarray, bound: float
) -> tuple[float, float]:
    """The outermost exponents whose S is within the bound: 0 and infinity where they are not among those looked at."""

    def edge(outer: int, inner: int) -> float:
        return math.exp(float(brentq(lambda log_a: square(log_a) - bound, logs[outer], logs[inner], xtol=1e-12)))

    first, last = np.flatnonzero(squares <= bound)[[0, -1]]
    return 0.0 if first == 0 else edge(first - 1, first), math.inf if last == len(logs) - 1 else edge(last + 1, last)
