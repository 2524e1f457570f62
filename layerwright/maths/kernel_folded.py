"""Kernels by the maps of a tower themselves, all layers on one tile of the pairs.

In float32 the angle between two inputs that are nearly one loses half of its digits in every layer, so that there maps
are folded in float64 whatever the type of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.kernel import State
from layerwright.maths.kernel_angles import carried, stacked
from layerwright.maths.kernel_pairs import NOWHERE, Fold, Inputs, Pairs, Side, side

__all__ = ["Folded", "folded"]


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
        rough: correlations of inputs between which maps are folded in float32; other tiles are in float64.
    """

    fold: Fold
    inputs: Inputs
    dtype: torch.dtype
    sides: tuple[list[Side], list[Side]]
    variances: tuple[Tensor, Tensor]
    layers: int
    rough: tuple[float, float]

    def write(self, rows: slice, columns: slice, parts: Sequence[Tensor]) -> None:
        """The kernels of a part of the pairs into so many matrices `[n, m]`."""
        for part, found in zip(parts, self.tile(rows, columns)):
            part.copy_(found)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The same, `[kernels, n, m]`."""
        inputs, parts = self.inputs, (rows, columns)
        c = inputs.correlations(rows, columns, self.rough)
        q1, q2 = (q[part].to(c.dtype) for q, part in zip(inputs.variances, parts))
        c.mul_(q1.sqrt()[:, None]).mul_(q2.sqrt())
        told = zip(*([known.of(part, c.dtype) for known in found] for found, part in zip(self.sides, parts)))
        ntk = c.new_zeros((0, *c.shape) if inputs.by_layer else c.shape)
        given = _Told(
            q1, q2, c, ntk, inputs.same(rows, columns), inputs.meeting(rows, columns), told,
            partial(inputs.itself, rows, columns),
        )  # fmt: skip
        end = self.fold(replace(given, nngp=given.where_same(q1, c)))
        # What is known of each input alone is exact in any type.
        return stacked(replace(end, nngp=end.where_same(self.variances[0][rows].to(c.dtype), end.nngp)))


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
    rough = carried(fold, inputs) if dtype == torch.float32 else (1.0, -1.0)
    sides, variances = (written[0], written[-1]), (ends[0].q1, ends[-1].q1)
    return Folded(fold, inputs, dtype, sides, variances, _layers(ends[0]), rough)


def _layers(found: State) -> int:
    return len(found.ntk) if found.ntk.ndim == 3 else 1
