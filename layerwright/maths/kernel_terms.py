"""The coefficients of polynomials that tell the kernels of a tower on an interval of correlations and a range of norms.

Found at Chebyshev nodes in ρ and in log q, taken through all layers once, and kept for the next call: what they cost
depends on depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.chebyshev import coefficients, in_powers, needed, nodes
from layerwright.maths.kernel_angles import COST, PRODUCT, SMALL, at_angles
from layerwright.maths.kernel_pairs import Fold, Interval

__all__ = ["Terms", "by_norm", "of_one"]

# Nodes of each norm, tried in turn, and of the correlation, and what is left out, of the largest number.
_NORMS, _POWERS = (8, 16, 32), 33
_LEFT_OUT = {torch.float32: 1e-7, torch.float64: 1e-13}
# The same of equal inputs, whose kernels are exact to rounding.
_EXACT = {torch.float32: 1e-8, torch.float64: 1e-13}
# Of how many towers, intervals and norms they are kept: a few intervals are tried for each call.
_KEPT = 64
# How many times the largest number its terms may add up to, which is what their rounding is of.
_LARGEST = 4.0


@dataclass(frozen=True)
class Terms:
    """The polynomials of an interval.

    Attributes:
        interval: of correlations; ρ₀ is its middle.
        logs: the middle and half of the range of log q.
        powers: C, `[kernels, powers, n, n]`, the highest power first; n = 1 where norms are one, or taken out.
        equal: the kernels of equal inputs as Chebyshev coefficients in log q, `[kernels, ·]`, and of an input and
            itself; none where a table tells them.
    """

    interval: Interval
    logs: tuple[float, float]
    powers: Tensor
    equal: tuple[np.ndarray, np.ndarray] | None

    @property
    def middle(self) -> float:
        """ρ₀."""
        return sum(self.interval) / 2


@lru_cache(maxsize=_KEPT)
def of_one(
    fold: Fold, interval: Interval, at: tuple[float, float], homogeneous: bool, by_layer: bool, dtype: torch.dtype
) -> Terms | None:
    """The polynomials of an interval where a kernel is one function of the correlation, or None where there are none.

    Args:
        fold: of the maps.
        interval: of correlations, within −1 and 1.
        at: norms of the first and of the second inputs at which the function is read.
        homogeneous: whether what is found is to be multiplied by √(q₁q₂).
        by_layer: whether the tangent kernel of each dense layer is kept apart.
        dtype: of the results.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> found = of_one(dense(2.0), (-0.5, 0.5), (1.0, 1.0), True, False, torch.float64)  # 2 ρ
        >>> found.powers[0].flatten().round(decimals=9).tolist()
        [2.0, 0.0]
    """
    if min(at) <= 0:
        return None
    values = at_angles(fold, at[:1], at[1:], _angles(interval), by_layer).numpy()
    powers = _powers(values / (at[0] if homogeneous else 1.0), interval, dtype)
    return None if powers is None else Terms(interval, (0.0, 1.0), powers, None)


@lru_cache(maxsize=_KEPT)
def by_norm(
    fold: Fold, interval: Interval, norms: tuple[float, float], by_layer: bool, dtype: torch.dtype
) -> Terms | None:
    """The same of an interval and a range of norms, from the smallest to the largest; arguments as in `of_one`.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> by_norm(dense(2.0, 0.1), (-0.5, 0.5), (1.0, 1.5), False, torch.float64).powers.shape[1]  # ρ and 1
        2
    """
    fits = dtype == torch.float64 or SMALL < norms[0] <= norms[1] < 1 / SMALL
    if norms[0] <= 0 or not fits:
        return None
    low, high = (math.log(q) for q in norms)
    logs = (low + high) / 2, (high - low) / 2 or 1.0
    if not _smooth(at_angles(fold, norms, norms, _angles(interval), by_layer).numpy(), dtype):
        return None
    for count in _NORMS:
        q = tuple(np.exp(logs[0] + logs[1] * nodes(count)).tolist())
        equal = _of_equal(fold, q, by_layer, dtype)
        if equal is not None:
            powers = _powers(at_angles(fold, q, q, _angles(interval), by_layer).numpy(), interval, dtype)
            if powers is not None:
                return Terms(interval, logs, powers, equal)
    return None


def _angles(interval: Interval) -> np.ndarray:
    low, high = interval
    return np.arccos((low + high) / 2 + (high - low) / 2 * nodes(_POWERS))


def _smooth(values: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether so many powers of ρ can do for the ends of the norms, which costs little to know."""
    if not np.isfinite(values).all():
        return False
    found = coefficients(_scaled(values)[0], (3,))
    return needed(np.abs(found).max((0, 1, 2)), (0,), _LEFT_OUT[dtype]) is not None


def _scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values over the largest of their kernel, and that."""
    largest = np.abs(values).max((1, 2, 3), keepdims=True)
    largest[largest == 0] = 1.0
    return values / largest, largest


def _powers(values: np.ndarray, interval: Interval, dtype: torch.dtype) -> Tensor | None:
    """Coefficients `[kernels, powers, n, n]` from values at nodes, as few as will do; None where these will not."""
    if not np.isfinite(values).all():
        return None
    scaled, largest = _scaled(values)
    found = coefficients(scaled, (1, 2, 3))
    size = np.abs(found).max(0)
    n, power = (needed(size, axes, _LEFT_OUT[dtype]) for axes in ((0, 1), (2,)))
    if n is None or power is None:
        return None
    # From Chebyshev polynomials of (ρ − ρ₀) / half to powers of ρ − ρ₀.
    half = (interval[1] - interval[0]) / 2
    scaled = np.einsum("kabp,pr->krab", found[:, :n, :n, :power], in_powers(power))
    terms = np.abs(scaled).sum((2, 3))
    slopes = (terms * np.arange(power)).sum(1) / half
    if terms.sum(1).max() > _LARGEST or (dtype == torch.float32 and slopes.max() * PRODUCT > COST):
        return None
    scaled *= largest / half ** np.arange(power)[:, None, None]
    return torch.from_numpy(scaled[:, ::-1].copy()).to(dtype)


@lru_cache(maxsize=_KEPT)
def _of_equal(
    fold: Fold, q: tuple[float, ...], by_layer: bool, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """Series in log q of the kernels of equal inputs, and of an input and itself; None where nodes are too few."""
    found = []
    # At two angles of 0, which make no square, there is no input itself.
    for angles in (np.zeros(2), np.zeros(1)):
        values = at_angles(fold, q, q, angles, by_layer)[..., 0].diagonal(dim1=1, dim2=2).numpy()
        if not np.isfinite(values).all():
            return None
        series = coefficients(values, (1,))
        if (np.abs(series[:, -2:]).max(1) > _EXACT[dtype] * np.abs(values).max(1)).any():
            return None
        found.append(series)
    return found[0], found[1]
