"""How large a signal, its differences and its gradient are in one layer of a network, and how sure that is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.resampling import resampled_sums

_REPLICATES = 400


class Interval(NamedTuple):
    """A number, and its 95 % bootstrap interval over the units of the layer."""

    value: float
    low: float
    high: float


class Measured(NamedTuple):
    """One layer.

    Attributes:
        variance: mean over inputs and units of x².
        correlation: mean over pairs of inputs, none of them zero, of ⟨x, y⟩ / (‖x‖ ‖y‖); NaN where there is no pair.
        gradient: mean over inputs of the gradient's squared length.
    """

    variance: Interval
    correlation: Interval
    gradient: Interval


def measured(x: Tensor, gradient: Tensor, seed: int = 0) -> Measured:
    """The size of a signal, of its differences, and of its gradient.

    Args:
        x: values of the layer, `[input, unit]`.
        gradient: derivative by them, same shape.
        seed: of the bootstrap.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> [round(found.value, 4) for found in measured(x, 3 * x)]
        [0.5, 0.7071, 9.0]
    """
    one, other = _pairs(x)
    inputs, units = x.shape
    rows = torch.cat([x.square(), x[one] * x[other], gradient.square().mean(0, keepdim=True)]).double().numpy()

    def numbers(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        squares, products, lengths = np.split(sums, [inputs, len(sums) - 1])
        return (
            squares.mean(0) / units,
            _mean_cosine(products, squares[one.numpy()] * squares[other.numpy()]),
            lengths[0],
        )

    again = numbers(resampled_sums(rows, seed, _REPLICATES))
    return Measured(*(_interval(value, found) for value, found in zip(numbers(rows.sum(1)[:, None]), again)))


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the inputs of each pair of which neither is zero."""
    one, other = torch.triu_indices(len(x), len(x), 1)
    counts = x.any(1)[one] & x.any(1)[other]
    return one[counts], other[counts]


def _mean_cosine(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Mean over pairs; those of which a replicate holds only zeros do not count in it."""
    known = squares > 0
    cosines = np.divide(products, np.sqrt(squares), out=np.zeros_like(products), where=known)
    return np.where(known.any(0), cosines.sum(0) / known.sum(0).clip(1), math.nan)


def _interval(value: np.ndarray, replicates: np.ndarray) -> Interval:
    known = replicates[~np.isnan(replicates)]
    low, high = np.quantile(known, (0.025, 0.975)) if known.size else (math.nan, math.nan)
    return Interval(float(value[0]), float(low), float(high))
