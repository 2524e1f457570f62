"""Maps of kernels over many pairs: what an activation has to know of an input is found once, and the pairs share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.hermite import hermite_coefficients
from layerwright.maths.kernel import Kernels, checked, kinds

__all__ = ["Fold", "Inputs", "Pairs", "Part", "Side", "inputs_of", "side"]

Fold = Callable[[Kernels], Kernels]
Part = slice | Tensor
# Terms of a series, doubled for pairs that ask for more; it ends where what follows is rounding.
_TERMS, _MOST_TERMS, _NOTHING = 32, 256, 1e-14
# Rows whose squares are summed in float64 at once.
_ROWS = 1024


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

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return len(self.x), len(self.y)

    def same(self, rows: Part, columns: Part) -> Tensor:
        """Where the inputs of some rows and columns are equal."""
        return self.kinds[0][rows][:, None] == self.kinds[1][columns]

    def itself(self, rows: slice, columns: slice) -> Tensor:
        """Where an input meets itself."""
        first, second = (torch.arange(part.start, part.stop) for part in (rows, columns))
        return (first[:, None] == second) & self.one

    def covariances(self, rows: Part, columns: Part, dtype: torch.dtype) -> Tensor:
        """X Yᵀ / d of a tile, worked out in a type of one's own: products of float32 are exact in float64."""
        return (self.x[rows].to(dtype) @ self.y[columns].to(dtype).T).div_(self.x.shape[1])


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


class Side(NamedTuple):
    """What an activation has to know of each input.

    Attributes:
        numbers: E φ(u)², E φ′(u)², and where there is no closed form the Hermite coefficients of φ and then of φ′,
            `[2 + 2 terms, N]`.
        left: the largest share of a mean square that a series leaves out after n terms, `[terms + 1]`; else empty.
    """

    numbers: Tensor
    left: Tensor

    def of(self, part: Part, dtype: torch.dtype) -> Side:
        """The same of some inputs, in another type."""
        return Side(self.numbers[:, part].to(dtype), self.left)


def side(phi: Activation, q: Tensor, terms: int = _TERMS) -> Side:
    """What φ has to know of inputs of these variances, `[N]`.

    Raises:
        ValueError: as in `Activation.diagonal_derivative`.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> side(activation("relu"), torch.tensor([2.0])).numbers
        tensor([[1.0000],
                [0.5000]])
    """
    if phi.closed is not None and q.isfinite().all():
        return Side(torch.stack(phi.closed.both(q, q, q)), q.new_zeros(0))
    whole = torch.stack([phi.diagonal(q), phi.diagonal_derivative(q)])
    assert phi.derivative is not None
    series = torch.stack([phi.coefficients(q, terms), hermite_coefficients(phi.derivative, q, terms, phi.kinks)]).mT
    left = 1 - series.square().cumsum(1) / whole.clamp_min(torch.finfo(q.dtype).tiny)[:, None]
    return Side(torch.cat([whole, *series]).to(q.dtype), torch.cat([left.new_ones(1), left.amax((0, 2))]))


@dataclass(frozen=True)
class Pairs(Kernels):
    """Kernels on which maps are quick and check nothing; all else as they are on `Kernels`.

    Attributes:
        touches: whether any two inputs are equal.
    """

    touches: bool

    def sides(self, phi: Activation) -> tuple[Side, Side]:
        """What φ has to know of the first and of the second inputs."""
        first = side(phi, self.q1)
        return first, first if torch.equal(self.q1, self.q2) else side(phi, self.q2)

    def averages(self, phi: Activation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As on `Kernels`."""
        first, second = self.sides(phi)
        if phi.closed is not None:
            dual, slope = phi.closed.both(self.q1[:, None], self.nngp, self.q2[None])
        else:
            dual, slope = self._series(phi, first, second)
        if self.touches:
            dual, slope = (self.where_same(exact, values) for exact, values in zip(first.numbers, (dual, slope)))
        return first.numbers[0], second.numbers[0], dual, slope

    def where_same(self, exact: Tensor, values: Tensor) -> Tensor:
        """As on `Kernels`."""
        return super().where_same(exact, values) if self.touches else values

    def _series(self, phi: Activation, first: Side, second: Side) -> tuple[Tensor, Tensor]:
        """Mehler's series of φ and of φ′, as far as the largest correlation asks for."""
        scale = self.q1.sqrt()[:, None] * self.q2.sqrt()
        rho = torch.where(scale > 0, self.nngp / scale, 0.0).clamp_(-1.0, 1.0)
        apart = rho.masked_fill(self.same, 0.0) if self.touches else rho
        largest = max(map(abs, map(float, apart.aminmax())))
        terms = _TERMS
        while (enough := _enough(first, second, largest)) is None and 2 * terms <= _MOST_TERMS:
            terms *= 2
            first, second = side(phi, self.q1, terms), side(phi, self.q2, terms)
        of_both = (found.numbers[2:].unflatten(0, (2, -1))[:, :enough] for found in (first, second))
        dual, slope = (_mehler(a, b, rho) for a, b in zip(*of_both))
        return dual, slope


def _enough(first: Side, second: Side, largest: float) -> int | None:
    """After how many terms, at least one, a series for correlations up to the largest is over."""
    left = torch.maximum(first.left, second.left) * largest ** torch.arange(len(first.left))
    over = (left[1:] <= _NOTHING).nonzero()
    return int(over[0]) + 1 if len(over) else None


def _mehler(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """Σ_n a_n b_n ρⁿ by Horner's rule, a `[terms, N]` and b `[terms, M]`."""
    total = (a[-1][:, None] * b[-1]).expand(rho.shape).clone()
    for x, y in zip(a[:-1].flip(0), b[:-1].flip(0)):
        total.mul_(rho).addcmul_(x[:, None], y)
    return total


def _mean_squares(x: Tensor) -> Tensor:
    return torch.cat([rows.double().square().mean(1) for rows in x.split(_ROWS)])
