"""Kernels of a tower as one function of the angle between two inputs, where they are one: tabulated once, looked up.

Every map of a tower reads a pair through its variances q₁, q₂ and its covariance only. Where all inputs have one norm,
or where the kernels are √(q₁q₂) times a function of ρ (homogeneous activations without biases), that is a function of
θ = acos ρ alone, and a smooth one up to both ends, whatever the depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from layerwright.maths import kernel_angles
from layerwright.maths.kernel_angles import COST, KEPT, PRODUCT, SMALL, at_angles, of_equal, stacked
from layerwright.maths.kernel_pairs import Fold, Inputs, Listed

__all__ = ["Curves", "Table", "Twins", "tabulated"]

# Degree of the spline, and what it may be off of the largest number, by the type of the results.
_SPLINES = {torch.float32: (3, 3e-7), torch.float64: (5, 1e-13)}
# Pieces at first, and at most; angles at which the functions of different norms are compared.
_PIECES, _MOST_PIECES, _COMPARED = 2**9, 2**15, 33
# In float32 lines will do, and take half of the time, where so many stay in a cache; what they may be off.
_LINES, _OFF_LINE = 2**14, 1e-7

# Rows of a tile that are looked up at once: what is made of them is most of the memory beside the results.
_ROWS = 48

Function = Callable[[np.ndarray], np.ndarray]
Norms = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Curves:
    """The function of the angle, for norms of which it is one.

    Attributes:
        homogeneous: whether all numbers below are to be multiplied by √(q₁q₂).
        norms: those at which the function was read.
        spline: coefficients of each piece of θ, `[kernels, degree + 1, pieces + 1]`, in the type of the results; the
            first kernel is the covariance, and all others make up the tangent kernel.
        ends: mean square of a unit of the output, for first and for second inputs.
        twins: the kernels of equal inputs, `[kernels]`.
        itself: the kernels of an input and itself, `[kernels]`, where dropout tells it from its twins; else None.
        rough: correlations between which products of float32 are good enough.
    """

    homogeneous: bool
    norms: tuple[float, float]
    spline: Tensor
    ends: tuple[float, float]
    twins: Tensor
    itself: Tensor | None
    rough: tuple[float, float]


@dataclass(frozen=True)
class Twins:
    """The kernels of equal inputs.

    Attributes:
        values: for each first input and a twin of it, `[kernels, N]`.
        itself: for each first input and itself, where dropout tells it from its twins; else None.
    """

    values: Tensor
    itself: Tensor | None

    def put(self, found: Iterable[Tensor], inputs: Inputs, rows: slice, columns: slice) -> None:
        """Write them where they belong in the matrices `[n, m]` of a tile."""
        first, second = inputs.equal(rows, columns)
        exact = self.values[:, rows][:, first]
        if self.itself is not None:
            one = inputs.one & (first + rows.start == second + columns.start)
            exact = torch.where(one, self.itself[:, rows][:, first], exact)
        for part, values in zip(found, exact):
            part[first, second] = values.to(part.dtype)


@dataclass(frozen=True)
class Table:
    """Kernels of inputs whose norms are one, or can be taken out, looked up."""

    inputs: Inputs
    curves: Curves

    @property
    def dtype(self) -> torch.dtype:
        """Of the results."""
        return self.curves.spline.dtype

    @property
    def layers(self) -> int:
        """How many parts the tangent kernel has."""
        return len(self.curves.spline) - 1

    @property
    def variances(self) -> tuple[Tensor, Tensor]:
        """Mean squares of a unit of the output, `[N]` and `[M]`."""
        q1, q2 = self.units
        return self.curves.ends[0] * q1, self.curves.ends[1] * q2

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Of first and second inputs those numbers whose roots the functions are to be multiplied by: q, or 1."""
        q1, q2 = self.inputs.variances
        return (q1, q2) if self.curves.homogeneous else (torch.ones_like(q1), torch.ones_like(q2))

    @cached_property
    def twins(self) -> Twins:
        """The kernels of equal inputs."""
        q, curves = self.units[0], self.curves
        itself = None if curves.itself is None else curves.itself[:, None] * q
        return Twins(curves.twins[:, None] * q, itself)

    def write(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> None:
        """The kernels of a part of the pairs into so many matrices `[n, m]`."""
        rho, listed = self.inputs.correlations(rows, columns, self.curves.rough, parts[0])
        first, second = self.units
        for few, unit, *here in zip(*(part.split(_ROWS) for part in (rho, first[rows, None], *parts))):
            for part, found in zip(here, self._at(few, unit, second[columns])):
                part.copy_(found)
        if len(listed.rho):
            listed.put(parts, self.listed(rows, columns, listed))
        self.twins.put(parts, self.inputs, rows, columns)

    def listed(self, rows: slice, columns: slice, pairs: Listed) -> Tensor:
        """The kernels of listed pairs of a tile, `[kernels, P]`."""
        first, second = self.units
        found = self._at(pairs.rho, first[rows][pairs.first], second[columns][pairs.second])
        return torch.stack([values.clone() for values in found])

    def _at(self, rho: Tensor, first: Tensor, second: Tensor) -> Iterator[Tensor]:
        """The functions at correlations, times the roots of what can be taken out, each in the same room."""
        spline = self.curves.spline
        places = rho.acos().mul_((spline.shape[-1] - 1) / math.pi).to(self.dtype)
        for values in _looked_up(spline, places):
            if self.curves.homogeneous:
                values.mul_(first.sqrt().to(self.dtype)).mul_(second.sqrt().to(self.dtype))
            yield values


def tabulated(fold: Fold, inputs: Inputs, dtype: torch.dtype) -> Table | None:
    """The table of a fold of maps, or None where there is no such table.

    It holds where the kernels at the smallest, a middle and the largest norm are one function of ρ, as they are or over
    √(q₁q₂), and where a spline meets it between its nodes.

    Args:
        fold: of maps that are elementwise in the pairs, as all of `kernel` are.
        inputs: the inputs.
        dtype: of the results, float32 or float64.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> from layerwright.maths.kernel_pairs import inputs_of
        >>> table = tabulated(dense(2.0), inputs_of(torch.tensor([[1.0, 1.0], [2.0, 0.0]])), torch.float32)
        >>> kernels = torch.empty(2, 2, 2)
        >>> table.write(slice(0, 2), slice(0, 2), kernels.unbind())
        >>> table.curves.homogeneous, kernels[0]
        (True, tensor([[2.0000, 2.0000],
                [2.0000, 4.0000]]))
        >>> tabulated(dense(2.0, 0.1), inputs_of(torch.tensor([[1.0, 1.0], [2.0, 0.0]])), torch.float32)
    """
    first, second = (kernel_angles.norms(q) for q in inputs.variances)
    curves = _curves(fold, first, second, inputs.by_layer, dtype)
    return None if curves is None else Table(inputs, curves)


@lru_cache(maxsize=KEPT)
def _curves(
    fold: Fold, first: tuple[float, ...], second: tuple[float, ...], by_layer: bool, dtype: torch.dtype
) -> Curves | None:
    """Of norms as `kernel_angles.norms` tells them; kept for the next call, as only they depend on depth."""
    degree, tolerance = _SPLINES[dtype]
    homogeneous = _homogeneous(fold, (first, second), by_layer, tolerance)
    if homogeneous is None:
        return None
    one, other, unit = first[-1], second[-1], 1.0
    if homogeneous:
        other = unit = one

    def function(theta: np.ndarray) -> np.ndarray:
        return at_angles(fold, [one], [other], theta, by_layer)[:, 0, 0].numpy() / unit

    nodes = _nodes(function, degree, tolerance)
    if nodes is None:
        return None
    spline = _spline(*nodes, degree)
    pieces = _lines(spline) if dtype == torch.float32 else spline
    twins = of_equal(fold, one, 2, by_layer)
    itself = twins if twins.same.all() else of_equal(fold, one, 1, by_layer)
    end = twins if other == one else of_equal(fold, other, 2, by_layer)
    return Curves(
        homogeneous, (one, other), torch.from_numpy(pieces).to(dtype), (float(twins.q1) / unit, float(end.q1) / unit),
        stacked(twins)[:, 0, 0] / unit, None if itself is twins else stacked(itself)[:, 0, 0] / unit,
        _rough(spline, (first, second), dtype),
    )  # fmt: skip


def _homogeneous(fold: Fold, norms: Norms, by_layer: bool, tolerance: float) -> bool | None:
    """Whether one function of ρ is to be multiplied by √(q₁q₂), or None where there is no one function."""
    if all(len(found) == 1 for found in norms):
        return False
    # Not up to the ends, where roundings of the norms show.
    theta = np.linspace(0, math.pi, _COMPARED + 2)[1:-1]
    values = at_angles(fold, norms[0], norms[1], theta, by_layer)
    scale = torch.outer(*(torch.tensor(found, dtype=torch.float64).sqrt() for found in norms)).unsqueeze(-1)
    for unit in (torch.ones_like(scale), scale):
        if unit[-1, -1] > 0:
            one = values[:, -1:, -1:] * (unit / unit[-1, -1])
            if ((values - one).abs() <= tolerance * one.abs().amax(-1, keepdim=True)).all():
                return unit is scale
    return None


def _nodes(function: Function, degree: int, tolerance: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Nodes of a spline that is good enough, with their values `[kernels, nodes]`.

    That through each second node is off 2^(degree + 1) times as far, and the other nodes show how far.
    """
    theta = np.linspace(0, math.pi, _PIECES + 1)
    values = function(theta)
    while np.isfinite(values).all():
        between = make_interp_spline(theta[::2], values[:, ::2], degree, axis=1)(theta[1::2])
        most = tolerance * 2 ** (degree + 1) * np.abs(values).max(1)
        if (np.abs(between - values[:, 1::2]).max(1) <= most).all():
            return theta, values
        if len(theta) > _MOST_PIECES:
            return None
        finer = np.linspace(0, math.pi, 4 * (len(theta) - 1) + 1)
        known, values = values, np.empty((len(values), len(finer)))
        new = np.arange(len(finer)) % 4 != 0
        values[:, ::4], values[:, new] = known, function(finer[new])
        theta = finer
    return None


def _spline(theta: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients of uᵏ between nodes, u from 0 to 1, `[kernels, degree + 1, nodes]`: the last piece is a point."""
    through, step = make_interp_spline(theta, values, degree, axis=1), theta[1]
    found = np.zeros((len(values), degree + 1, len(theta)))
    for k in range(degree + 1):
        found[:, k, :-1] = through(theta[:-1], nu=k) * (step**k / math.factorial(k))
    found[:, 0, -1] = values[:, -1]
    return found


def _lines(spline: np.ndarray) -> np.ndarray:
    """The same with lines, of as many pieces as they ask for; as it is where these are too many."""
    pieces = spline.shape[-1] - 1
    # A line is off by an eighth of the second derivative, times its length squared.
    bend = (np.abs(spline[:, 2]).max(1) / np.abs(spline[:, 0]).max(1).clip(SMALL)).max() / 4
    finer = 2 ** math.ceil(math.log2(max(1.0, bend / _OFF_LINE)) / 2)
    if finer * pieces > _LINES:
        return spline
    u = (np.arange(finer) / finer) ** np.arange(spline.shape[1])[:, None]
    values = np.append(np.einsum("kcp,cu->kpu", spline[:, :, :-1], u).reshape(len(spline), -1), spline[:, 0, -1:], 1)
    return np.stack([values, np.diff(values, append=values[:, -1:])], axis=1)


def _rough(spline: np.ndarray, norms: Norms, dtype: torch.dtype) -> tuple[float, float]:
    """The correlations around 0 where what a product of float32 is off costs little; none for other results."""
    fits = all(SMALL < q < 1 / SMALL for found in norms for q in found if q)
    theta = np.linspace(0, math.pi, spline.shape[-1])
    slope = np.abs(spline[:, 1]) / (theta[1] * np.abs(spline[:, 0]).max(1, keepdims=True).clip(SMALL))
    bad = np.flatnonzero(slope.max(0) * PRODUCT > COST * np.sin(theta))
    middle = spline.shape[-1] // 2
    if dtype != torch.float32 or not fits or middle in bad:
        return 1.0, -1.0
    last, next_ = bad[bad < middle].max(initial=0), bad[bad > middle].min(initial=len(theta) - 1)
    return math.cos(theta[next_]), math.cos(theta[last])


def _looked_up(spline: Tensor, at: Tensor) -> Iterator[Tensor]:
    """The spline of each kernel at places counted in pieces, in the same room."""
    piece, part, room = at.int().view(-1), at.frac_().view(-1), torch.empty_like(at)
    values = room.view(-1)
    for *lower, highest in (kernel.unbind() for kernel in spline):
        torch.index_select(highest, 0, piece, out=values)
        for coefficient in reversed(lower):
            torch.addcmul(coefficient.index_select(0, piece), values, part, out=values)
        yield room
