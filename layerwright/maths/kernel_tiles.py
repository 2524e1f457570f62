"""Kernels of many inputs, tile by tile: all layers of a tower on pairs that fit the cache, half of a symmetric matrix.

In float32 the angle between two inputs that are nearly one loses half of its digits in every layer, so that there maps
are folded in float64 whatever the type of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.kernel import Kernels, State
from layerwright.maths.kernel_angles import carried, stacked
from layerwright.maths.kernel_pairs import NOWHERE, Fold, Inputs, Pairs, Side, side
from layerwright.maths.kernel_table import Table, tabulated
from layerwright.maths.threads import on_threads

__all__ = ["Folded", "Plan", "fill", "filled", "folded", "planned", "tiles"]

# Rows of a tile, few, as what it has beside the diagonal is worked out twice; and bytes of one of its matrices, so that
# the calls of torch cost little beside what they do, and most of what they do stays in a core's cache.
_ROWS, _BYTES = 128, 2**20
# Freed in one piece, it makes glibc keep what tiles free, in place of giving each back to the system and getting it
# again, page by page, in twice the time.
_FREED = 2**25 - 2**16
Tile = tuple[slice, slice]


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

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The kernels of a part of the pairs, `[kernels, n, m]`."""
        inputs, parts = self.inputs, (rows, columns)
        c, _ = inputs.covariances(rows, columns, self.rough)
        q1, q2 = (q[part].to(c.dtype) for q, part in zip(inputs.variances, parts))
        told = zip(*([known.of(part, c.dtype) for known in found] for found, part in zip(self.sides, parts)))
        ntk = c.new_zeros((0, *c.shape) if inputs.by_layer else c.shape)
        given = _Told(
            q1, q2, c, ntk, inputs.same(rows, columns), inputs.meeting(rows, columns), told,
            partial(inputs.itself, rows, columns),
        )  # fmt: skip
        end = self.fold(replace(given, nngp=given.where_same(q1, c)))
        # What is known of each input alone is exact in any type.
        return stacked(replace(end, nngp=end.where_same(self.variances[0][rows].to(c.dtype), end.nngp)))


Plan = Folded | Table


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


def planned(fold: Fold, inputs: Inputs, dtype: torch.dtype) -> Plan:
    """The quickest way to the kernels of these inputs: a table where one holds, else the maps themselves.

    Args:
        fold: of maps of `kernel`, or others that are elementwise in the pairs.
        inputs: the inputs.
        dtype: of the results, float32 or float64.

    Raises:
        ValueError: an activation cannot be averaged over these inputs.
    """
    return tabulated(fold, inputs, dtype) or folded(fold, inputs, dtype)


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


def filled(plan: Plan, dtype: torch.dtype) -> Kernels:
    """All kernels, on as many threads as torch has here.

    Raises:
        ValueError: the kernels overflow.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> from layerwright.maths.kernel_pairs import inputs_of
        >>> filled(planned(dense(2.0), inputs_of(torch.ones(2, 1)), torch.float32), torch.float32).ntk
        tensor([[2., 2.],
                [2., 2.]])
    """
    n, m = plan.inputs.shape
    nngp, ntk = torch.empty(n, m, dtype=dtype), torch.empty(plan.layers, n, m, dtype=dtype)
    fill(plan, tiles(plan, slice(n), slice(m)), nngp, ntk)
    q1, q2 = (q.to(dtype) for q in plan.variances)
    return Kernels(q1, q2, nngp, ntk if plan.inputs.by_layer else ntk[0])


def tiles(plan: Plan, rows: slice, columns: slice) -> list[Tile]:
    """Tiles of some rows and columns; of a symmetric matrix those on and above the diagonal, where it begins a tile.

    Example:
        >>> from layerwright.maths.kernel import dense
        >>> from layerwright.maths.kernel_pairs import inputs_of
        >>> plan = planned(dense(), inputs_of(torch.ones(200, 1)), torch.float64)
        >>> tiles(plan, slice(200), slice(200))
        [(slice(0, 128, None), slice(0, 200, None)), (slice(128, 200, None), slice(128, 200, None))]
    """
    (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip((rows, columns), plan.inputs.shape))
    wide = _BYTES // (_ROWS * plan.dtype.itemsize)
    return [
        (slice(i, min(i + _ROWS, bottom)), slice(j, min(j + wide, right)))
        for i in range(top, bottom, _ROWS)
        for j in range(max(left, i) if plan.inputs.one else left, right, wide)
    ]


def fill(plan: Plan, todo: Sequence[Tile], nngp: Tensor, ntk: Tensor) -> None:
    """Write the kernels of some tiles, and what mirrors them.

    Args:
        plan: of the kernels.
        todo: the tiles.
        nngp: filled, `[N, M]`.
        ntk: filled, `[layers, N, M]`.

    Raises:
        ValueError: the kernels overflow.
    """
    _keep_freed_memory()
    for _ in on_threads(partial(_fill, plan, nngp, ntk), todo):
        pass


@cache
def _keep_freed_memory() -> None:
    """Once: done again, it would be what makes glibc give back all that lies before it."""
    torch.empty(_FREED, dtype=torch.uint8)


@cache
def _upper(n: int) -> Tensor:
    """The diagonal of a matrix and what is above it."""
    return torch.ones(n, n, dtype=torch.bool).triu()


def _fill(plan: Plan, nngp: Tensor, ntk: Tensor, tile: Tile) -> None:
    rows, columns = tile
    found = plan.tile(rows, columns).to(nngp.dtype)
    if not all(map(torch.isfinite, found.aminmax())):
        raise ValueError("got kernels that overflow; expected finite ones: take smaller variances or fewer layers")
    for whole, part in ((nngp, found[0]), (ntk, found[1:])):
        whole[..., rows, columns] = part
        if plan.inputs.one:
            if columns.start == rows.start:
                square = part[..., : rows.stop - rows.start]
                square.copy_(torch.where(_upper(square.shape[-1]), square, square.mT))
            whole[..., columns, rows] = part.mT
