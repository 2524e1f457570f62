"""What theories of wide networks share: the data that they read or make, and the tower that their options describe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from layerwright.core.errors import UserError
from layerwright.theories.towers import Act, Conv, Dense, Flatten, Pool, Residual, Tower, tower
from layerwright.theories.words import Word

_READOUTS: dict[str, type[Pool | Flatten]] = {"pool": Pool, "flatten": Flatten}


def check_sizes(depth: int, samples: int, dimension: int) -> None:
    """Refuse sizes that are no counts.

    Raises:
        UserError: one of them is not a whole number from 1 on.
    """
    if not all(isinstance(n, int) and n >= 1 for n in (depth, samples, dimension)):
        raise UserError(
            f"got depth={depth}, samples={samples}, dimension={dimension}; expected whole numbers from 1 on"
        )


def tower_of(
    x: np.ndarray, activation: str | Callable[..., torch.Tensor], depth: int, weight: float, bias: float,
    residual: float | None, filter_size: int, readout: str,
) -> Tower:  # fmt: skip
    """So many layers of an activation, or residual blocks of it after a first layer; the last layer has C_W = 1.

    Layers are dense on rows, and on images convolutions with a readout behind them.

    Raises:
        UserError: an activation without a tangent kernel, numbers that are no variances, or another readout.

    Example:
        >>> [len(tower_of(np.eye(2), "relu", 2, 2.0, 0.0, r, 3, "pool").words) for r in (None, 0.5)]
        [5, 4]
        >>> tower_of(np.ones((2, 1, 4, 4)), "relu", 1, 2.0, 0.0, None, 3, "flatten").words[0].size
        3
    """
    if readout not in _READOUTS:
        raise UserError(f"got readout={readout!r}; expected one of {', '.join(_READOUTS)}")
    images, phi = x.ndim == 4, Act(activation)
    layer = Conv(filter_size, weight, bias) if images else Dense(weight, bias)
    words: list[Word] = [layer, phi] * depth
    if residual is not None:
        words = [layer, *(Residual([phi, layer], residual) for _ in range(depth))]
    if images:
        words.append(_READOUTS[readout]())
    return tower([*words, Dense()])


def made(samples: int, dimension: int, queries: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points on a sphere of radius √d, and targets with a linear and a quadratic part; the queries are the last rows.

    Example:
        >>> x, y = made(3, 4, queries=2)
        >>> x.shape, y.shape, (x**2).sum(1).round(9).tolist()
        ((5, 4), (5, 1), [4.0, 4.0, 4.0, 4.0, 4.0])
    """
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((n, dimension)) for n in (samples, queries)])
    x *= math.sqrt(dimension) / np.linalg.norm(x, axis=1, keepdims=True)
    return x, (x[:, 0] + x[:, 0] * x[:, -1])[:, None]


def rows_of(given: object, name: str) -> np.ndarray:
    """An array of a user as float64, `[N, d]`.

    Raises:
        UserError: it is no matrix of finite real numbers.
    """
    return _shaped(given, name, {2: "rows and columns, [N, d]"})


def inputs_of(given: object, name: str) -> np.ndarray:
    """An array of a user as float64, rows `[N, d]` or images `[N, C, H, W]`.

    Raises:
        UserError: it is neither.
    """
    return _shaped(given, name, {2: "rows and columns, [N, d]", 4: "images, [N, C, H, W]"})


def targets_of(given: object, name: str, n: int) -> np.ndarray:
    """Targets of so many rows, `[N, C]`.

    Raises:
        UserError: they are not finite real numbers, or not as many.
    """
    y = _real(given, name)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != n or not y.size:
        raise UserError(f"got {name} {y.shape} for {n} inputs; expected one row, or one number, for each input")
    return y


def remarks(x: np.ndarray) -> list[str]:
    """Notes on inputs that make kernels singular."""
    notes, x = [], x.reshape(len(x), -1)
    if zeros := int((~x.any(1)).sum()):
        notes.append(f"{zeros} of {len(x)} inputs are zero vectors")
    if twins := len(x) - len(np.unique(x, axis=0)):
        notes.append(f"{twins} of {len(x)} inputs stand there more than once: the kernels are singular")
    return notes


def refuse_zeros(largest: float) -> None:
    """Refuse a kernel without an eigenvalue above 0.

    Raises:
        UserError: it is zero.
    """
    if not largest > 0:
        raise UserError(
            "got a kernel of zeros: every input is a zero vector or the signal dies; leave those rows out, or take "
            "larger variances"
        )


def _shaped(given: object, name: str, shapes: Mapping[int, str]) -> np.ndarray:
    x = _real(given, name)
    if x.ndim not in shapes or not x.size:
        raise UserError(f"got {name} {x.shape}; expected {', or '.join(shapes.values())}")
    return x


def _real(given: object, name: str) -> np.ndarray:
    found = np.asarray(given)
    if found.dtype.kind not in "biuf":
        raise UserError(f"got {name} of type {found.dtype}; expected real numbers")
    if not np.isfinite(found).all():
        raise UserError(f"got {name} that are NaN or infinite; expected finite numbers: leave those rows out")
    return np.ascontiguousarray(found, dtype=float)
