"""Kernels of a fold of maps for pairs at chosen norms and angles, which tell how all pairs can be worked out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.kernel import State
from layerwright.maths.kernel_pairs import NOWHERE, Fold, Inputs, Pairs

__all__ = ["apart", "at_angles", "carried", "norms", "of_equal", "stacked"]

# How far a product of float32 is off a correlation, and what share of the largest number results may be off.
PRODUCT, _CARRIED = 4 * 2.0**-24, 4e-6
# What share of the largest number may be lost to a product of float32.
COST = 2e-6
# What is too small, and one over it too large, for the squares of float32.
SMALL = 1e-20
# Of how many towers, norms and types what depends on depth is kept.
KEPT = 8
# Angles at which float32 is tried, dense at both ends.
_TRIED = math.pi * np.sin(np.linspace(0, math.pi / 2, 67)[1:-1]) ** 2


def norms(q: Tensor) -> tuple[float, ...]:
    """The ends of the variances, and last one in their middle; 0 apart, as it has no correlations.

    Example:
        >>> norms(torch.tensor([0.0, 1.0, 9.0, 2.0]))
        (0.0, 1.0, 9.0, 3.0)
    """
    positive = q[q > 0]
    if not len(positive):
        return (0.0,)
    low, high = map(float, positive.aminmax())
    middle = low if low == high else math.sqrt(low) * math.sqrt(high)
    others = {low, high, *([0.0] if len(positive) < len(q) else [])} - {middle}
    return (*sorted(others), middle)


def at_angles(
    fold: Fold,
    first: Sequence[float],
    second: Sequence[float],
    theta: np.ndarray,
    by_layer: bool,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The kernels at angles between inputs of each first and each second norm, `[kernels, first, second, angles]`.

    In float32 covariances are as far from 0 as rounding may take them.
    """
    q1, q2 = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    at = torch.from_numpy(theta)
    scale = torch.outer(q1, q2).sqrt().unsqueeze(-1)  # q itself for two inputs of variance q
    same, c = (at == 0) & (q1[:, None, None] == q2[:, None]), (scale * at.cos()).flatten(1)
    if dtype == torch.float32:
        c = c * (1 + PRODUCT)
    columns = q2 if len(q2) == 1 else q2.repeat_interleave(len(at))
    q1, columns, c = (part.to(dtype) for part in (q1, columns, c))
    meets = slice(0, c.shape[1]) if same.any() else NOWHERE
    found = fold(Pairs(q1, columns, c, _nothing(c, by_layer), same.flatten(1), meets))
    return stacked(found).unflatten(-1, (len(q2), len(at)))


def carried(fold: Fold, inputs: Inputs) -> tuple[float, float]:
    """Correlations around 0 between which float32 carries all maps, at the ends and the middle of the norms."""
    first, second = (norms(q) for q in inputs.variances)
    exact, found = (
        at_angles(fold, first, second, _TRIED, inputs.by_layer, dtype) for dtype in (torch.float64, torch.float32)
    )
    far = ~((found - exact).abs() <= _CARRIED * exact.abs().amax(-1, keepdim=True))
    bad, middle = np.flatnonzero(far.flatten(0, -2).any(0).numpy()), len(_TRIED) // 2
    if middle in bad:
        return 1.0, -1.0
    low, high = bad[bad < middle].max(initial=-1), bad[bad > middle].min(initial=len(_TRIED))
    return math.cos(_TRIED[high - 1]), math.cos(_TRIED[low + 1])


def of_equal(fold: Fold, q: float, columns: int, by_layer: bool = False) -> State:
    """The kernels of one input of a variance and its twins, or (`columns=1`) of one input and itself."""
    c, meets = torch.full((1, columns), q, dtype=torch.float64), slice(0, columns)
    return fold(Pairs(c[0, :1], c[0], c, _nothing(c, by_layer), torch.ones_like(c, dtype=torch.bool), meets))


def apart(found: State) -> list[Tensor]:
    """The covariance and all parts of the tangent kernel, each `[N, M]`."""
    return [found.nngp, *(found.ntk if found.ntk.ndim == 3 else [found.ntk])]


def stacked(found: State) -> Tensor:
    """The same as one, `[kernels, N, M]`."""
    return torch.stack(apart(found))


def _nothing(c: Tensor, by_layer: bool) -> Tensor:
    return c.new_zeros((0, *c.shape) if by_layer else c.shape)
