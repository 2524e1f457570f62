"""The kernels of a tower on rows of numbers: by the shortest way, in memory or into files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.memory import available_memory
from layerwright.maths import kernel
from layerwright.maths.kernel import Kernels
from layerwright.maths.kernel_pairs import Fold, inputs_of
from layerwright.maths.kernel_polynomial import polynomial
from layerwright.maths.kernel_table import tabulated
from layerwright.maths.kernel_tiles import Plan, filled, planned
from layerwright.maths.threads import on_one_thread

# Pairs so few that no other way is shorter than the maps as they stand.
_FEW = 2**12
_GB = 1e9


def row_kernels(fold: Fold, x: Any, x2: Any, dtype: torch.dtype, by_layer: bool) -> Kernels:
    """All kernels, in memory.

    Args:
        fold: of the tower's maps.
        x: inputs `[N, d]`, whatever becomes a tensor.
        x2: second inputs, or None.
        dtype: of the results.
        by_layer: whether the tangent kernel of each dense layer is kept apart.

    Raises:
        ValueError: inputs without kernels.
        UserError: more of them than memory holds.
    """
    rows, columns = _read(x, x2, dtype)
    if _at_once(rows, columns):
        exact = kernel.inputs(rows.double(), None if columns is None else columns.double(), by_layer)
        return as_type(fold(exact), dtype)
    _check_memory(fold, rows, columns, dtype, by_layer)
    with on_one_thread():
        plan = planned(fold, inputs_of(rows, columns, by_layer), dtype)
    return filled(plan, dtype)


def way(fold: Fold, x: Any, x2: Any, dtype: torch.dtype) -> str:
    """How `row_kernels` goes about it: "at once", "polynomials", "table" or "tiles".

    Raises:
        ValueError: inputs without kernels.
    """
    rows, columns = _read(x, x2, dtype)
    given = inputs_of(rows, columns)
    if _at_once(rows, columns):
        return "at once"
    table = tabulated(fold, given, dtype)
    return "polynomials" if polynomial(fold, given, dtype, table) else "table" if table else "tiles"


def _at_once(rows: Tensor, columns: Tensor | None) -> bool:
    """Whether all pairs go through the maps together, which is also what says why inputs are none."""
    few = rows.ndim != 2 or len(rows) * len(rows if columns is None else columns) <= _FEW
    return few or rows.device.type != "cpu"


def as_type(found: Kernels, dtype: torch.dtype) -> Kernels:
    """Kernels in another type.

    Raises:
        ValueError: they overflow.
    """
    q1, q2, nngp, ntk = (part.to(dtype) for part in (found.q1, found.q2, found.nngp, found.ntk))
    if not (nngp.isfinite().all() and ntk.isfinite().all()):
        raise ValueError("got kernels that overflow; expected finite ones: take smaller variances or fewer layers")
    return Kernels(q1, q2, nngp, ntk)


def row_plan(fold: Fold, x: Any, x2: Any, dtype: torch.dtype) -> Plan:
    """How the kernels of these inputs are worked out, for files.

    Raises:
        ValueError: inputs without kernels.
    """
    return planned(fold, inputs_of(*_read(x, x2, dtype)), dtype)


def _read(x: Any, x2: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Inputs as float64, or float32 where both are."""
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"got dtype={dtype}; expected torch.float32 or torch.float64")
    try:
        given = [torch.as_tensor(part) for part in ((x,) if x2 is None else (x, x2))]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"got inputs that are no array of numbers ({error}); expected rows, [N, d]") from None
    if any(part.is_complex() for part in given):
        raise ValueError("got complex inputs; expected real numbers")
    if not all(part.dtype == torch.float32 for part in given):
        given = [part.double() for part in given]
    return given[0].detach(), given[1].detach() if len(given) > 1 else None


def _check_memory(fold: Fold, x: Tensor, x2: Tensor | None, dtype: torch.dtype, by_layer: bool) -> None:
    """Before anything is worked out."""
    n, m = len(x), len(x if x2 is None else x2)
    layers = len(fold(kernel.inputs(torch.ones(1, 1), by_layer=True)).ntk) if by_layer else 1
    needed = n * m * (1 + layers) * dtype.itemsize
    if needed > (free := available_memory()):
        advice = (
            "take fewer, as in split(x[:100], x)" if by_layer else "write them into files with kernel_to(folder, x)"
        )
        raise UserError(
            f"got {n} × {m} inputs, whose kernels take {needed / _GB:.1f} GB; expected at most {free / _GB:.1f} GB, "
            f"which are free: {advice}"
        )
