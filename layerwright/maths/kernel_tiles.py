"""Kernels of many inputs, tile by tile: pairs that fit a core's cache, half of a symmetric matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor

from layerwright.maths.freed import keep_freed
from layerwright.maths.kernel import Kernels
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Inputs
from layerwright.maths.kernel_polynomial import Polynomial, polynomial
from layerwright.maths.kernel_table import Table, tabulated
from layerwright.maths.threads import on_threads

__all__ = ["Plan", "fill", "filled", "planned", "tiles"]

# Rows of a tile, few, as what it has beside the diagonal is worked out twice; and bytes of one of its matrices, so that
# the calls of torch cost little beside what they do, and most of what they do stays in a core's cache. Polynomials,
# which need little beside the results, take twice as many of both. A tile is wider than high.
_ROWS, _BYTES, _TWICE = 128, 2**20, 2
Tile = tuple[slice, slice]
Plan = Folded | Table | Polynomial


def planned(fold: Fold, inputs: Inputs, dtype: torch.dtype) -> Plan:
    """The quickest way to the kernels of these inputs: polynomials, a table where one holds, else the maps themselves.

    Args:
        fold: of maps of `kernel`, or others that are elementwise in the pairs.
        inputs: the inputs.
        dtype: of the results, float32 or float64.

    Raises:
        ValueError: an activation cannot be averaged over these inputs.
    """
    table = tabulated(fold, inputs, dtype)
    return polynomial(fold, inputs, dtype, table) or table or folded(fold, inputs, dtype)


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
    times = _TWICE if isinstance(plan, Polynomial) else 1
    high, wide = times * _ROWS, _BYTES // (_ROWS * plan.dtype.itemsize)
    return [
        (slice(i, min(i + high, bottom)), slice(j, min(j + wide, right)))
        for i in range(top, bottom, high)
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
    keep_freed()
    for _ in on_threads(partial(_fill, plan, [nngp, *ntk]), todo):
        pass


@cache
def _upper(n: int) -> Tensor:
    """The diagonal of a matrix and what is above it."""
    return torch.ones(n, n, dtype=torch.bool).triu()


def _fill(plan: Plan, whole: Sequence[Tensor], tile: Tile) -> None:
    rows, columns = tile
    parts = [kernel[rows, columns] for kernel in whole]
    plan.write(rows, columns, parts)
    for kernel, part in zip(whole, parts):
        # A sum is quicker, and infinite for large numbers too.
        if not part.sum().isfinite() and not part.isfinite().all():
            raise ValueError("got kernels that overflow; expected finite ones: take smaller variances or fewer layers")
        if plan.inputs.one:
            square = rows.stop - rows.start if columns.start == rows.start else 0
            if square:
                part[:, :square] = torch.where(_upper(square), part[:, :square], part[:, :square].T)
            kernel[columns.start + square : columns.stop, rows] = part[:, square:].T
