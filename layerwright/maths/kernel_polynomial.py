"""Kernels of a tower as polynomials in the correlation of two inputs, where correlations stay away from ±1.

There a kernel is an analytic function of ρ and of both norms, whatever the depth and the activation: some powers of ρ,
whose coefficients are of low rank in the norms, tell all pairs for the price of some products of thin matrices,

    K(q₁, q₂, ρ) = Σ_p (ρ − ρ₀)ᵖ Σ_ab T_a(log q₁) C_pab T_b(log q₂),    T Chebyshev polynomials.

The few pairs that come nearer to ±1 are taken through all layers one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from layerwright.maths.kernel_angles import norms
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Inputs, Interval
from layerwright.maths.kernel_table import Table, Twins
from layerwright.maths.kernel_terms import Terms, by_norm, of_one

__all__ = ["Polynomial", "polynomial"]

# Pairs from which on it is worth its coefficients, and inputs of each side that tell how far correlations reach.
_PAIRS, _SAMPLED = 2**19, 128
# Rows of a tile that are worked out at once: many, so that calls of torch cost little, and few, as what is made of them
# is most of the memory beside the results.
_ROWS = 128
# How much wider than normal tails ask for the interval is, to which grid its ends are put, and what share of pairs may
# be outside.
_WIDER, _GRID, _OUTSIDE = 1.1, 16, 1 / 32
# How often what is between too wide an interval and one that will do is halved.
_HALVED = 2


@dataclass(frozen=True)
class Polynomial:
    """Kernels by polynomials in the correlation; pairs outside of their interval go another way.

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
        """The way of correlations that are not in the interval."""
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
        terms, inputs = self.terms, self.inputs
        inputs.product(rows, columns, parts[0], terms.middle)
        listed = inputs.listed(rows, columns, parts[0], terms.interval, terms.middle)
        if listed is None:
            return self.otherwise.write(rows, columns, parts)
        for start in range(rows.start, rows.stop, _ROWS):
            few = slice(start, min(start + _ROWS, rows.stop))
            self._written(few, columns, [part[start - rows.start :][: few.stop - start] for part in parts])
        if len(listed.rho):
            listed.put(parts, self.otherwise.listed(rows, columns, listed))
        self.twins.put(parts, inputs, rows, columns)

    def _written(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> None:
        """From ρ − ρ₀ in the first of the parts."""
        terms, x = self.terms, parts[0]
        first, second = self.sides[0][rows], self.sides[1][:, columns]
        for k in reversed(range(len(parts))):  # the first is where x is
            room = parts[k] if k else torch.empty(x.shape, dtype=x.dtype)
            if len(second) == 1:
                _alone(terms.powers[k].flatten(), x, room, parts[k])
                if self.table is not None and self.table.curves.homogeneous:
                    parts[k].mul_(first).mul_(second)
            else:
                _by_norms(torch.matmul(first, terms.powers[k]), second, x, room, parts[k])

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
    if math.prod(inputs.shape) < _PAIRS:
        return None
    if table is None:
        found = [q for side in inputs.variances for q in norms(side)]
        ends = min(found), max(found)
        terms = _widest(
            [partial(by_norm, fold, some, ends, inputs.by_layer, dtype) for some in _intervals(inputs, dtype, _OUTSIDE)]
        )
    elif dtype == torch.float32 and table.curves.rough[0] > table.curves.rough[1]:
        return None
    else:  # which is quick, so that all are to be inside
        one = table.curves.norms, table.curves.homogeneous, inputs.by_layer, dtype
        terms = _widest([partial(of_one, fold, some, *one) for some in _intervals(inputs, dtype, 0.0)])
    return None if terms is None else Polynomial(fold, inputs, dtype, terms, table)


def _widest(tried: Sequence[Callable[[], Terms | None]]) -> Terms | None:
    """Of intervals, each wider than the next, the widest that has polynomials, or nearly that."""
    if not tried or (terms := tried[0]()) is not None:
        return terms if tried else None
    known, low, high = tried[-1](), 1, len(tried) - 1
    for _ in range(_HALVED):
        if known is None or low >= high:
            break
        if (terms := tried[middle := (low + high) // 2]()) is None:
            low = middle + 1
        else:
            known, high = terms, middle
    return known


def _intervals(inputs: Inputs, dtype: torch.dtype, most: float) -> Iterator[Interval]:
    """Where correlations are likely to be, from some of them, the widest first; a share of them may be outside."""
    few = inputs.some(_SAMPLED)
    rows, columns = (slice(0, n) for n in few.shape)
    rho = few.product(rows, columns, torch.empty(few.shape, dtype=dtype))[~few.same(rows, columns)]
    if not len(rho) or not rho.isfinite().all():
        return
    low, high = map(float, rho.aminmax())
    # The largest of n normal numbers grows as √log n.
    wider = _WIDER * math.sqrt(math.log(math.prod(inputs.shape)) / math.log(len(rho) + 1))
    middle, half = (low + high) / 2, wider * (high - low) / 2
    left, right = math.floor((middle - half) * _GRID), math.ceil((middle + half) * _GRID)
    if most:
        left, right = max(left, 1 - _GRID), min(right, _GRID - 1)
    while -_GRID < left < right < _GRID:
        if (rho < left / _GRID).logical_or_(rho > right / _GRID).count_nonzero() > most * len(rho):
            return
        yield left / _GRID, right / _GRID
        left, right = (left, right - 1) if right > -left else (left + 1, right)  # the end that is nearer to ±1


def _alone(powers: Tensor, x: Tensor, room: Tensor, total: Tensor) -> None:
    """Horner's rule in a room, and at last into `total`, which may be x; the coefficients the same for all pairs."""
    highest, *rest = powers.unbind()
    if not rest:
        total.fill_(highest)
        return
    rooms = [*[room] * (len(rest) - 1), total]
    # Not `addcmul` of two numbers, which takes one pair after another.
    found = torch.add(rest[0], x, alpha=float(highest), out=rooms[0])
    for power, where in zip(rest[1:], rooms[1:]):
        found = torch.addcmul(power, found, x, out=where)


def _by_norms(powers: Tensor, second: Tensor, x: Tensor, room: Tensor, total: Tensor) -> None:
    """The same, the coefficients `[powers, N, n]` times `[n, M]`."""
    torch.mm(powers[0], second, out=room)
    for power in powers[1:]:
        room.mul_(x).addmm_(power, second)
    if room is not total:
        total.copy_(room)
