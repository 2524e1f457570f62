"""Kernels of a tower as polynomials in the correlation of two inputs, where correlations stay away from ±1.

There a kernel is an analytic function of ρ and of both norms, whatever the depth and the activation: some powers of ρ,
whose coefficients are of low rank in the norms, tell all pairs for the price of some products of thin matrices,

    K(q₁, q₂, ρ) = Σ_p (ρ − ρ₀)ᵖ Σ_ab T_a(log q₁) C_pab T_b(log q₂),    T Chebyshev polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from layerwright.maths.chebyshev import coefficients, in_powers, needed, nodes
from layerwright.maths.kernel_angles import COST, KEPT, PRODUCT, SMALL, at_angles, norms
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Inputs
from layerwright.maths.kernel_table import Table, Twins

__all__ = ["Polynomial", "polynomial"]

# Pairs from which on it is worth its coefficients, and inputs of each side that tell how far correlations reach.
_PAIRS, _SAMPLED = 2**19, 128
# Rows of a tile that are worked out at once, so few that they, and what is made of them, stay in a core's cache.
_ROWS = 128
# How much wider than theirs the interval is, and to which grid its ends are put.
_WIDER, _GRID = 1.25, 16
# Nodes of each norm, tried in turn, and of the correlation, and what is left out, of the largest number.
_NORMS, _POWERS = (8, 16, 32), 33
_LEFT_OUT = {torch.float32: 1e-7, torch.float64: 1e-13}
# The same of equal inputs, whose kernels are exact to rounding.
_EXACT = {torch.float32: 1e-8, torch.float64: 1e-13}
# How many times the largest number its terms may add up to, which is what their rounding is of.
_LARGEST = 4.0

Interval = tuple[float, float]


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


@dataclass(frozen=True)
class Polynomial:
    """Kernels by polynomials in the correlation; tiles with others than of their interval go another way.

    Attributes:
        fold: of the maps.
        inputs: the inputs.
        dtype: of the results.
        terms: the polynomials.
        table: the table, where there is one.
    """

    fold: Fold
    inputs: Inputs
    dtype: torch.dtype
    terms: Terms
    table: Table | None

    @property
    def layers(self) -> int:
        """How many parts the tangent kernel has."""
        return len(self.terms.powers) - 1

    @cached_property
    def variances(self) -> tuple[Tensor, Tensor]:
        """Mean squares of a unit of the output, `[N]` and `[M]`."""
        if self.table is not None:
            return self.table.variances
        twins = self.twins.values if self.twins.itself is None else self.twins.itself
        if self.inputs.one:
            return twins[0], twins[0]
        assert self.terms.equal is not None
        return twins[0], self._at_norms(self.terms.equal[1], self.inputs.variances[1])[0]

    @cached_property
    def otherwise(self) -> Folded | Table:
        """The way of tiles with correlations that are not in the interval."""
        return self.table or folded(self.fold, self.inputs, self.dtype)

    @cached_property
    def twins(self) -> Twins:
        """The kernels of equal inputs."""
        if self.table is not None:
            return self.table.twins
        assert self.terms.equal is not None
        first = self.inputs.variances[0]
        twins, itself = (self._at_norms(found, first) for found in self.terms.equal)
        return Twins(twins, None if torch.equal(twins, itself) else itself)

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """T of first and second inputs, `[N, n]` and `[n, M]`; norms that can be taken out where n is 1."""
        n = self.terms.powers.shape[-1]
        if self.table is None:
            first, second = (self._basis(q, n) for q in self.inputs.variances)
        else:
            first, second = (unit.sqrt()[:, None] for unit in self.table.units)
        return first.to(self.dtype), second.T.to(self.dtype).contiguous()

    def write(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> None:
        """The kernels of a part of the pairs into so many matrices `[n, m]`."""
        self.inputs.product(rows, columns, parts[0], self.terms.middle)
        for start in range(rows.start, rows.stop, _ROWS):
            few = slice(start, min(start + _ROWS, rows.stop))
            here = [part[start - rows.start :][: few.stop - start] for part in parts]
            if not self._written(few, columns, here):
                self.otherwise.write(few, columns, here)
        self.twins.put(parts, self.inputs, rows, columns)

    def _written(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> bool:
        """From the correlations in the first of the parts; whether they are all in the interval."""
        terms, x = self.terms, parts[0]
        # Not `aminmax`, which copies what is not contiguous.
        if not (terms.interval[0] <= float(x.amin()) and float(x.amax()) <= terms.interval[1]):  # or NaN
            return False
        x.sub_(terms.middle)
        first, second = self.sides[0][rows], self.sides[1][:, columns]
        for k in reversed(range(len(parts))):  # the first is where x is
            room = parts[k] if k else torch.empty(x.shape, dtype=x.dtype)
            if len(second) == 1:
                _alone(terms.powers[k].flatten(), x, room, parts[k])
                if self.table is not None and self.table.curves.homogeneous:
                    parts[k].mul_(first).mul_(second)
            else:
                _by_norms(torch.matmul(first, terms.powers[k]), second, x, room, parts[k])
        return True

    def _basis(self, q: Tensor, n: int) -> Tensor:
        """T₀ … T_{n−1} of log q, `[N, n]`."""
        middle, half = self.terms.logs
        return torch.from_numpy(chebyshev.chebvander((q.log().numpy() - middle) / half, n - 1))

    def _at_norms(self, series: np.ndarray, q: Tensor) -> Tensor:
        """Series in log q, `[kernels, N]`."""
        return torch.from_numpy(series) @ self._basis(q, series.shape[1]).T


def polynomial(fold: Fold, inputs: Inputs, dtype: torch.dtype, table: Table | None = None) -> Polynomial | None:
    """Polynomials for these inputs, or None where there are none, or their coefficients cost more than they save.

    Args:
        fold: of maps that are elementwise in the pairs, as all of `kernel` are.
        inputs: the inputs.
        dtype: of the results, float32 or float64.
        table: of these inputs, where there is one.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> from layerwright.maths.kernel_pairs import inputs_of
        >>> x = torch.randn(800, 50, generator=torch.Generator().manual_seed(0))
        >>> found = polynomial(dense(2.0, 0.1), inputs_of(x), torch.float32)  # 2 ρ √(q₁q₂) + 0.1
        >>> found.terms.powers.shape[1], polynomial(dense(2.0, 0.1), inputs_of(x[:9]), torch.float32)
        (2, None)
    """
    interval = _interval(inputs, dtype) if math.prod(inputs.shape) >= _PAIRS else None
    if interval is None:
        return None
    if table is None:
        found = [q for side in inputs.variances for q in norms(side)]
        terms = _by_norm(fold, interval, (min(found), max(found)), inputs.by_layer, dtype)
    elif dtype == torch.float32 and table.curves.rough[0] > table.curves.rough[1]:
        terms = None
    else:
        terms = _of_one(fold, interval, table.curves.norms, table.curves.homogeneous, inputs.by_layer, dtype)
    return None if terms is None else Polynomial(fold, inputs, dtype, terms, table)


def _interval(inputs: Inputs, dtype: torch.dtype) -> Interval | None:
    """Where correlations are likely to be, from some of them; None where that is not between −1 and 1."""
    few = inputs.some(_SAMPLED)
    rows, columns = (slice(0, n) for n in few.shape)
    apart = few.product(rows, columns, torch.empty(few.shape, dtype=dtype))[~few.same(rows, columns)]
    if not len(apart) or not apart.isfinite().all():
        return None
    low, high = map(float, apart.aminmax())
    middle, half = (low + high) / 2, _WIDER * (high - low) / 2
    ends = math.floor((middle - half) * _GRID) / _GRID, math.ceil((middle + half) * _GRID) / _GRID
    return ends if -1 < ends[0] < ends[1] < 1 else None


# What depends on depth is kept for the next call.


@lru_cache(maxsize=KEPT)
def _of_one(
    fold: Fold, interval: Interval, at: tuple[float, float], homogeneous: bool, by_layer: bool, dtype: torch.dtype
) -> Terms | None:
    """The polynomials of an interval where a kernel is one function of the correlation."""
    if min(at) <= 0:
        return None
    values = at_angles(fold, at[:1], at[1:], _angles(interval), by_layer).numpy()
    powers = _powers(values / (at[0] if homogeneous else 1.0), interval, dtype)
    return None if powers is None else Terms(interval, (0.0, 1.0), powers, None)


@lru_cache(maxsize=KEPT)
def _by_norm(
    fold: Fold, interval: Interval, norms: tuple[float, float], by_layer: bool, dtype: torch.dtype
) -> Terms | None:
    """The polynomials of an interval and a range of norms."""
    fits = dtype == torch.float64 or SMALL < norms[0] <= norms[1] < 1 / SMALL
    if norms[0] <= 0 or not fits:
        return None
    low, high = (math.log(q) for q in norms)
    logs = (low + high) / 2, (high - low) / 2 or 1.0
    for count in _NORMS:
        q = np.exp(logs[0] + logs[1] * nodes(count)).tolist()
        equal = _of_equal(fold, q, by_layer, dtype)
        if equal is not None:
            powers = _powers(at_angles(fold, q, q, _angles(interval), by_layer).numpy(), interval, dtype)
            if powers is not None:
                return Terms(interval, logs, powers, equal)
    return None


def _angles(interval: Interval) -> np.ndarray:
    low, high = interval
    return np.arccos((low + high) / 2 + (high - low) / 2 * nodes(_POWERS))


def _powers(values: np.ndarray, interval: Interval, dtype: torch.dtype) -> Tensor | None:
    """Coefficients `[kernels, powers, n, n]` from values at nodes, as few as will do; None where these will not."""
    if not np.isfinite(values).all():
        return None
    largest = np.abs(values).max((1, 2, 3), keepdims=True)
    largest[largest == 0] = 1.0
    found = coefficients(values / largest, (1, 2, 3))
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


def _of_equal(
    fold: Fold, q: Sequence[float], by_layer: bool, dtype: torch.dtype
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


def _alone(powers: Tensor, x: Tensor, room: Tensor, total: Tensor) -> None:
    """Horner's rule in a room, and at last into `total`, which may be x; the coefficients the same for all pairs."""
    found, *rest = powers
    for power in rest[:-1]:
        found = torch.addcmul(power, found, x, out=room)
    if rest:
        torch.addcmul(rest[-1], found, x, out=total)
    else:
        total.fill_(found)


def _by_norms(powers: Tensor, second: Tensor, x: Tensor, room: Tensor, total: Tensor) -> None:
    """The same, the coefficients `[powers, N, n]` times `[n, M]`."""
    torch.mm(powers[0], second, out=room)
    for power in powers[1:]:
        room.mul_(x).addmm_(power, second)
    if room is not total:
        total.copy_(room)
