"""Maps of kernels over many pairs: what an activation has to know of an input is found once, and the pairs share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.hermite_table import Series, diagonals, series
from layerwright.maths.kernel import ROWS, State, checked, kinds

__all__ = ["Fold", "Inputs", "Interval", "Listed", "Pairs", "Side", "inputs_of", "side"]

Fold = Callable[[State], State]
Interval = tuple[float, float]
NOWHERE = slice(0, 0)
# The share of a tile above which none of its pairs is listed, and rows whose listed pairs are multiplied at once.
_MOST_LISTED, _ROWS = 1 / 8, 64
# A series ends where what follows is rounding.
_NOTHING = {torch.float32: 1e-9, torch.float64: 1e-14}


@dataclass(frozen=True)
class Inputs:
    """First and second inputs of a kernel.

    Attributes:
        x: first inputs, `[N, d]`, float32 or float64.
        y: second inputs, `[M, d]`; the same object where there are none of their own.
        kinds: a number for each row of x, and of y, the same where rows are equal.
        by_layer: whether the tangent kernel of each dense layer is kept apart.
    """

    x: Tensor
    y: Tensor
    kinds: tuple[Tensor, Tensor]
    by_layer: bool = False

    @cached_property
    def one(self) -> bool:
        """Whether both are the same rows in the same order, so that half of the pairs tell the rest."""
        return self.y is self.x or torch.equal(*self.kinds)

    @cached_property
    def variances(self) -> tuple[Tensor, Tensor]:
        """Mean squares of the rows of x and of y, float64."""
        first = _mean_squares(self.x)
        return first, first if self.one else _mean_squares(self.y)

    @cached_property
    def over_lengths(self) -> tuple[Tensor, Tensor]:
        """One over the root of each variance, 0 where that is 0, float64."""
        first, second = (torch.where(q > 0, q.rsqrt(), 0.0) for q in self.variances)
        return first, second

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return len(self.x), len(self.y)

    @cached_property
    def alone(self) -> bool:
        """Whether no two inputs are equal, but for an input and itself."""
        if self.one:
            return len(self.kinds[0].unique()) == len(self.x)
        return not torch.isin(*self.kinds).any()

    def same(self, rows: slice, columns: slice) -> Tensor:
        """Where the inputs of some rows and columns are equal."""
        return self.kinds[0][rows][:, None] == self.kinds[1][columns]

    def meeting(self, rows: slice, columns: slice) -> slice:
        """Which of some columns to look at for inputs that are equal to one of some rows, counted from their first."""
        if not self.alone:
            at = torch.isin(self.kinds[1][columns], self.kinds[0][rows]).nonzero()
            return slice(int(at[0]), int(at[-1]) + 1) if len(at) else NOWHERE
        start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
        return slice(start - columns.start, stop - columns.start) if self.one and start < stop else NOWHERE

    def equal(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Of the pairs of some rows and columns those of equal inputs, counted from their first row and column."""
        meets = self.meeting(rows, columns)
        if self.alone:
            at = torch.arange(meets.start, meets.stop)
            return at + (columns.start - rows.start), at
        first, second = self.same(rows, columns)[:, meets].nonzero(as_tuple=True)
        return first, second + meets.start

    def itself(self, rows: slice, columns: slice) -> Tensor:
        """Where an input meets itself."""
        first, second = (torch.arange(part.start, part.stop) for part in (rows, columns))
        return (first[:, None] == second) & self.one

    def product(self, rows: slice, columns: slice, out: Tensor, less: float = 0.0) -> Tensor:
        """Correlations of a tile less a number, as a product of its type tells them, into `out`; 0 at equal rows."""
        over, others = self.over_lengths[0][rows, None] / self.x.shape[1], self.over_lengths[1][columns]
        torch.mm(self.x[rows].to(out.dtype), self.y[columns].to(out.dtype).T, out=out).mul_(over.to(out.dtype))
        torch.addcmul(torch.tensor(-less, dtype=out.dtype), out, others.to(out.dtype), out=out)
        out[self.equal(rows, columns)] = 0.0
        return out

    def correlations(self, rows: slice, columns: slice, rough: Interval, room: Tensor) -> tuple[Tensor, Listed]:
        """Correlations of a tile, from −1 to 1, and 0 where inputs are equal; and those of its pairs that are listed.

        Args:
            rows: first inputs of the tile.
            columns: second inputs.
            rough: those for which products, and results, of float32 are good enough. Where all but few of the tile are,
                it is in float32, the few are listed, and 0 stands for them.
            room: where they are written, of float32 or, where that is not good enough for more than a few, float64.
        """
        if rough[0] <= rough[1] and room.dtype == torch.float32:
            self.product(rows, columns, room)
            if (found := self.listed(rows, columns, room, rough)) is not None:
                return room, found
        if room.dtype != torch.float64:
            room = torch.empty(room.shape, dtype=torch.float64)
        return self.product(rows, columns, room).clamp_(-1.0, 1.0), NONE

    def listed(self, rows: slice, columns: slice, rho: Tensor, inside: Interval, less: float = 0.0) -> Listed | None:
        """Those of a `product` outside an interval, where it is then 0; None where they are many."""
        low, high = (end - less for end in inside)
        # Not `aminmax`, which copies what is not contiguous.
        if low <= float(rho.amin()) and float(rho.amax()) <= high:
            return NONE
        # In numpy, whose comparisons and searches take a fifth of the time.
        values = rho.numpy()
        outside = ~((low <= values) & (values <= high))  # or NaN
        if np.count_nonzero(outside) > _MOST_LISTED * outside.size:
            return None
        first, second = map(torch.from_numpy, divmod(np.flatnonzero(outside), outside.shape[1]))
        rho[first, second] = 0.0
        # Some rows at a time, as a product has room for all their columns.
        some = torch.bincount(first // _ROWS).tolist()
        parts = [self._exact(rows, columns, i, j) for i, j in zip(first.split(some), second.split(some)) if len(i)]
        return Listed(first, second, torch.cat(parts))

    def _exact(self, rows: slice, columns: slice, first: Tensor, second: Tensor) -> Tensor:
        """Correlations of pairs of a tile in float64, by a product of the rows and columns that they have."""
        sides = []
        for x, over, part, at in zip((self.x, self.y), self.over_lengths, (rows, columns), (first, second)):
            found, where = at.unique(return_inverse=True)
            sides.append((x[part][found].double() * over[part][found, None], where))
        (x, i), (y, j) = sides
        return torch.mm(x / x.shape[1], y.T)[i, j].clamp_(-1.0, 1.0)

    def some(self, count: int) -> Inputs:
        """At most so many first and second inputs, evenly spread."""
        x, y = (part[:: -(-len(part) // count)] for part in (self.x, self.y))
        kinds = tuple(kind[:: -(-len(kind) // count)] for kind in self.kinds)
        return replace(self, x=x, y=x if self.one else y, kinds=(kinds[0], kinds[0 if self.one else 1]))


def inputs_of(x: Tensor, x2: Tensor | None = None, by_layer: bool = False) -> Inputs:
    """Inputs as tiles read them.

    Raises:
        ValueError: as in `kernel.inputs`.

    Example:
        >>> inputs_of(torch.eye(2), torch.eye(2)).one
        True
    """
    x, y = (part.detach() for part in checked(x, x2))
    y = x if x2 is None else y
    return Inputs(x, y, kinds(x, y), by_layer)


class Listed(NamedTuple):
    """Pairs of a tile that are worked out one by one, none of them of equal inputs.

    Attributes:
        first: their rows, counted from the first of the tile, `[P]`.
        second: their columns.
        rho: their correlations, float64.
    """

    first: Tensor
    second: Tensor
    rho: Tensor

    def put(self, parts: Iterable[Tensor], found: Iterable[Tensor]) -> None:
        """Kernels of these pairs, each `[P]`, into those of the tile."""
        for part, values in zip(parts, found):
            part[self.first, self.second] = values.to(part.dtype)


NONE = Listed(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64))


class Side(NamedTuple):
    """What an activation has to know of each input.

    Attributes:
        numbers: E φ(u)² and E φ′(u)², `[2, N]`.
        series: of φ and of φ′, where there is no closed form.
    """

    numbers: Tensor
    series: Series | None

    def of(self, part: slice | Tensor, dtype: torch.dtype) -> Side:
        """The same of some inputs, or of those of such numbers, in another type."""
        return Side(self.numbers[:, part].to(dtype), self.series)


def side(phi: Activation, q: Tensor) -> Side:
    """What φ has to know of inputs of these variances, `[N]`.

    Raises:
        ValueError: φ cannot be averaged over them.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> side(activation("relu"), torch.tensor([2.0])).numbers
        tensor([[1.0000],
                [0.5000]])
    """
    closed = phi.closed
    if closed is not None and closed.dual_derivative is not None and q.isfinite().all():
        return Side(torch.stack([closed.dual(q, q, q), closed.dual_derivative(q, q, q)]), None)
    few, where = q.unique(return_inverse=True)
    numbers = diagonals(phi, few)
    return Side(numbers[:, where], series(phi, few, numbers))


@dataclass(frozen=True)
class Pairs(State):
    """Kernels on which maps are quick and check nothing; all else as they are on `Kernels`.

    Attributes:
        meets: the columns in which equal inputs are, if any.
    """

    meets: slice

    def sides(self, phi: Activation) -> tuple[Side, Side]:
        """What φ has to know of the first and of the second inputs."""
        both, where = torch.cat([self.q1, self.q2]).unique(return_inverse=True)
        found, (first, second) = side(phi, both), where.split([len(self.q1), len(self.q2)])
        return found.of(first, found.numbers.dtype), found.of(second, found.numbers.dtype)

    def averages(self, phi: Activation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As on `State`."""
        first, second = self.sides(phi)
        if phi.closed is not None:
            dual, slope = phi.closed.both(self.q1[:, None], self.nngp, torch.atleast_2d(self.q2))
        else:
            assert first.series is not None
            assert second.series is not None
            dual, slope = self._series(first.series, second.series)
        dual, slope = (
            self._put(exact, values if values.is_contiguous() else values.clone())
            for exact, values in zip(first.numbers, (dual, slope))
        )
        return first.numbers[0], second.numbers[0], dual, slope

    def where_same(self, exact: Tensor, values: Tensor) -> Tensor:
        """As on `State`."""
        return values if self.meets == NOWHERE else self._put(exact, values.clone())

    def _put(self, exact: Tensor, values: Tensor) -> Tensor:
        """The same, written into the values."""
        if self.meets != NOWHERE:
            part = slice(None), self.meets
            values[part] = torch.where(self.same[part], exact[:, None], values[part])
        return values

    def _series(self, first: Series, second: Series) -> tuple[Tensor, Tensor]:
        """Mehler's series of φ and of φ′, as far as the largest correlation asks for."""
        over = [torch.where(q > 0, q.rsqrt(), 0.0) for q in (self.q1, self.q2)]
        rho = (self.nngp * over[0][:, None]).mul_(over[1]).clamp_(-1.0, 1.0)
        apart = self.where_same(torch.zeros_like(self.q1), rho)
        terms = first.enough(second, max(map(abs, map(float, apart.aminmax()))), _NOTHING[rho.dtype])
        a = first.at(self.q1, terms)
        b = second.at(self.q2, terms)
        dual, slope = (_mehler(x, y, rho) for x, y in zip(a, b))
        return dual, slope


def _mehler(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """Σ_n a_n b_n ρⁿ by Horner's rule, a `[terms, N]` and b `[terms, M]`."""
    total = (a[-1][:, None] * b[-1]).expand(rho.shape).clone()
    for x, y in zip(a[:-1].flip(0), b[:-1].flip(0)):
        total.mul_(rho).addcmul_(x[:, None], y)
    return total


def _mean_squares(x: Tensor) -> Tensor:
    # In one room: small results between large ones that are freed would keep the memory of all of these.
    found, room = (torch.empty(shape, dtype=torch.float64) for shape in ((len(x),), (min(len(x), ROWS), x.shape[1])))
    for rows, means in zip(x.split(ROWS), found.split(ROWS)):
        torch.mean(room[: len(rows)].copy_(rows).square_(), 1, out=means)
    return found
