"""Chebyshev series of smooth functions of several variables, each from −1 to 1, from values at their nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import dctn

__all__ = ["coefficients", "in_powers", "needed", "nodes"]


def nodes(n: int) -> np.ndarray:
    """cos(π (k + ½) / n), from 1 to −1, `[n]`.

    Example:
        >>> nodes(2).round(4)
        array([ 0.7071, -0.7071])
    """
    return np.cos(np.pi * (np.arange(n) + 0.5) / n)


def coefficients(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Of T₀, T₁, … along some axes, from values at the nodes of each; exact for polynomials of lower degree.

    Example:
        >>> coefficients(2 * nodes(3) ** 2, [0]).round(4) + 0.0  # 2x² = T₀ + T₂
        array([1., 0., 1.])
    """
    found = dctn(values, axes=axes)
    for axis in axes:
        found /= values.shape[axis]
        first: list[slice] = [slice(None)] * values.ndim
        first[axis] = slice(0, 1)
        found[tuple(first)] /= 2
    return found


def needed(size: np.ndarray, axes: Sequence[int], left_out: float) -> int | None:
    """How many coefficients along each of some axes are enough, or None where all there are do not show it.

    Args:
        size: of the coefficients.
        axes: as many coefficients along each; one may be all there are, else the last two must be left out.
        left_out: what all that are left out along an axis may add up to.

    Example:
        >>> needed(np.array([1.0, 1e-3, 1e-9, 1e-9]), [0], 1e-6), needed(np.array([1.0, 1e-3]), [0], 1e-6)
        (2, None)
    """
    tails = [size.sum(tuple(other for other in range(size.ndim) if other != axis))[::-1].cumsum() for axis in axes]
    found = max(max(len(tail) - int((tail <= left_out).sum()) for tail in tails), 1)
    return found if len(tails[0]) == 1 or found <= len(tails[0]) - 2 else None


def in_powers(n: int) -> np.ndarray:
    """T₀ … T_{n−1} as powers of x, `[n, powers]`.

    Example:
        >>> in_powers(3)[2] + 0.0
        array([-1.,  0.,  2.])
    """
    found = np.eye(n)
    for k in range(2, n):  # T_k = 2x T_{k−1} − T_{k−2}
        found[k, 0], found[k, 1:] = 0.0, 2 * found[k - 1, :-1]
        found[k] -= found[k - 2]
    return found
