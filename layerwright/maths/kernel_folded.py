"""Kernels by the maps of a tower themselves, all layers on one tile of the pairs.

In float32 the angle between two inputs that are nearly one loses half of its digits in every layer, so that such pairs
are folded in float64 whatever the type of the results: one by one where they are few, with all of their tile else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.kernel import State
from layerwright.maths.kernel_angles import apart, carried
from layerwright.maths.kernel_pairs import NOWHERE, Fold, Inputs, Interval, Listed, Pairs, Side, side

__all__ = ["Folded", "folded"]

# How many listed pairs are worked out at once.
_LISTED = 2**13
Numbers = slice | Tensor


@dataclass(frozen=True)
class Folded:
    """Kernels by the maps themselves.

    Attributes:
        fold: of the maps.
        inputs: the inputs.
        dtype: of the results.
        sides: what each activation, in the order of the fold, has to know of first and of second inputs.
        variances: mean squares of a unit of the output, `[N]` and `[M]`.
        layers: how many parts the tangent kernel has.
    """

    fold: Fold
    inputs: Inputs
    dtype: torch.dtype
    sides: tuple[list[Side], list[Side]]
    variances: tuple[Tensor, Tensor]
    layers: int

    @cached_property
    def rough(self) -> Interval:
        """Correlations of inputs between which maps are folded in float32."""
        return carried(self.fold, self.inputs) if self.dtype == torch.float32 else (1.0, -1.0)

    def write(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> None:
        """The kernels of a part of the pairs into so many matrices `[n, m]`."""
        inputs = self.inputs
        rho, listed = inputs.correlations(rows, columns, self.rough, parts[0])
        same, itself = inputs.same(rows, columns), partial(inputs.itself, rows, columns)
        for part, found in zip(parts, self._of(rows, columns, rho, same, inputs.meeting(rows, columns), itself)):
            part.copy_(found)
        if len(listed.rho):
            listed.put(parts, self.listed(rows, columns, listed))

    def listed(self, rows: slice, columns: slice, pairs: Listed) -> Tensor:
        """The kernels of listed pairs of a tile, `[kernels, P]`."""
        found = []
        for first, second, rho in zip(*(part.split(_LISTED) for part in pairs)):
            # Each second input is a column of its own, which no other meets.
            rho = rho[:, None].clone()
            same = torch.zeros_like(rho, dtype=torch.bool)
            numbers = first + rows.start, (second + columns.start)[:, None]
            found.append(torch.stack(self._of(*numbers, rho, same, NOWHERE, partial(torch.clone, same)))[..., 0])
        return torch.cat(found, 1)

    def _of(
        self, first: Numbers, second: Numbers, rho: Tensor, same: Tensor, meets: slice, itself: Callable[[], Tensor]
    ) -> list[Tensor]:
        """All kernels of some first and second inputs, from their correlations, which are overwritten."""
        numbers, inputs = (first, second), self.inputs
        q1, q2 = (q[at].to(rho.dtype) for q, at in zip(inputs.variances, numbers))
        c = rho.mul_(q1.sqrt()[:, None]).mul_(q2.sqrt())
        told = zip(*([known.of(at, c.dtype) for known in found] for found, at in zip(self.sides, numbers)))
        ntk = c.new_zeros((0, *c.shape) if inputs.by_layer else c.shape)
        given = _Told(q1, q2, c, ntk, same, meets, told, itself)
        end = self.fold(replace(given, nngp=given.where_same(q1, c)))
        # What is known of each input alone is exact in any type.
        return apart(replace(end, nngp=end.where_same(self.variances[0][first].to(c.dtype), end.nngp)))


@dataclass(frozen=True)
class _Told(Pairs):
    """Pairs of a tile, which are told what activations know of their inputs."""

    told: Iterator[tuple[Side, Side]]
    found: Callable[[], Tensor]

    def sides(self, phi: Activation) -> tuple[Side, Side]:
        return next(self.told)

    def itself(self) -> Tensor:
        return self.found()


@dataclass(frozen=True)
class _Alone(Pairs):
    """Inputs without pairs: a fold of these writes down what activations know of them."""

    written: list[Side]

    def averages(self, phi: Activation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.written.append(known := side(phi, self.q1))
        return known.numbers[0], self.q2, self.nngp, self.nngp


def folded(fold: Fold, inputs: Inputs, dtype: torch.dtype) -> Folded:
    """Kernels by the maps themselves, what activations know of each input found once.

    Raises:
        ValueError: as in `planned`.
    """
    written: list[list[Side]] = []
    ends: list[State] = []
    for q in inputs.variances[: 1 if inputs.one else 2]:
        none = q.new_zeros(len(q), 0)
        ntk = none[None][:0] if inputs.by_layer else none
        written.append([])
        ends.append(fold(_Alone(q, q[:0], none, ntk, none.bool(), NOWHERE, written[-1])))
    sides, variances = (written[0], written[-1]), (ends[0].q1, ends[-1].q1)
    return Folded(fold, inputs, dtype, sides, variances, _layers(ends[0]))


def _layers(found: State) -> int:
    return len(found.ntk) if found.ntk.ndim == 3 else 1
