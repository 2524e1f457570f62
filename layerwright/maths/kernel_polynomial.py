"""Kernels of a tower as polynomials in the correlation of two inputs, where correlations stay away from ±1.

There a kernel is an analytic function of ρ and of both norms, whatever the depth and the activation: some powers of ρ,
whose coefficients are of low rank in the norms, tell all pairs for the price of some products of thin matrices,

    K(q₁, q₂, ρ) = Σ_p (ρ − ρ₀)ᵖ Σ_ab T_a(log q₁) C_pab T_b(log q₂),    T Chebyshev polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from layerwright.maths.kernel_angles import norms
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Inputs
from layerwright.maths.kernel_table import Table, Twins
from layerwright.maths.kernel_terms import Interval, Terms, by_norm, of_one

__all__ = ["Polynomial", "polynomial"]

# Pairs from which on it is worth its coefficients, and inputs of each side that tell how far correlations reach.
_PAIRS, _SAMPLED = 2**19, 128
# Rows of a tile that are worked out at once: many, so that calls of torch cost little, and few, as what is made of them
# is most of the memory beside the results.
_ROWS = 128
# How much wider than theirs the interval is, and to which grid its ends are put.
_WIDER, _GRID = 1.25, 16


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
        terms = by_norm(fold, interval, (min(found), max(found)), inputs.by_layer, dtype)
    elif dtype == torch.float32 and table.curves.rough[0] > table.curves.rough[1]:
        terms = None
    else:
        terms = of_one(fold, interval, table.curves.norms, table.curves.homogeneous, inputs.by_layer, dtype)
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
