"""Hermite series of an activation for many norms: quadrature for a few of them, and polynomials between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebinterpolate, chebvander
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.hermite import hermite_coefficients

_TERMS = 256
# Norms up to which each has its own quadrature; degrees of the polynomials; what their last coefficients may be.
_FEW, _DEGREES, _SMALL = 16, (31, 63, 127), 1e-12


class Range(NamedTuple):
    """Coefficients as polynomials in log(1 + √q): smooth where √q is small, and over many octaves of it.

    Attributes:
        low: the smallest log(1 + √q).
        width: how far the largest is from it.
        table: Chebyshev coefficients, `[degree + 1, 2 · terms]`.
    """

    low: float
    width: float
    table: Tensor

    def at(self, q: Tensor, terms: int) -> Tensor:
        """`Series.at`."""
        x = (q.double().sqrt().log1p() - self.low) * (2 / self.width) - 1
        powers = torch.from_numpy(chebvander(x.clamp(-1.0, 1.0).numpy(), len(self.table) - 1))
        table = self.table.unflatten(1, (2, -1))[:, :, :terms].flatten(1)
        return (powers @ table).unflatten(1, (2, -1)).permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class Series:
    """The Hermite series of φ and of φ′ for some variances.

    Attributes:
        phi: φ, without a closed form.
        range: the coefficients as functions of the norm; None where each variance has its own quadrature.
        left: what the first n terms leave out of E φ(u)² or E φ′(u)², at most, over the largest of these numbers,
            `[terms + 1]`.
    """

    phi: Activation
    range: Range | None
    left: Tensor

    def at(self, q: Tensor, terms: int) -> Tensor:
        """The coefficients of φ and of φ′ for variances among those of the series, `[2, terms, N]`, in their type."""
        few, where = q.unique(return_inverse=True)
        found = _coefficients(self.phi, few, terms) if self.range is None else self.range.at(few, terms)
        return found.to(q.dtype)[:, :, where]

    def enough(self, other: Series, largest: float, off: float) -> int:
        """How many terms, at least one, pairs of correlations up to the largest ask for."""
        left = torch.maximum(self.left, other.left) * largest ** torch.arange(_TERMS + 1, dtype=torch.float64)
        over = (left[1:] <= off).nonzero()
        return int(over[0]) + 1 if len(over) else _TERMS


def series(phi: Activation, q: Tensor, whole: Tensor) -> Series:
    """The Hermite series of φ for inputs of variances q, `[N]`.

    Args:
        phi: an activation without a closed form.
        q: variances.
        whole: E φ(u)² and E φ′(u)², `[2, N]`.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> q = torch.linspace(0.5, 2.0, 100, dtype=torch.float64)
        >>> found = series(tanh := activation("tanh"), q, torch.stack([tanh.diagonal(q), tanh.diagonal_derivative(q)]))
        >>> bool((found.at(q[7:9], 40)[0].T - tanh.coefficients(q[7:9], 40)).abs().max() < 1e-13)
        True
    """
    known = _range(phi, q) if len(q) > _FEW else None
    if len(q) > _FEW:
        order = q.argsort()[torch.linspace(0, len(q) - 1, _FEW).round().long()]
        q, whole = q[order], whole[:, order]
    told = _coefficients(phi, q, _TERMS).square().cumsum(1)
    left = (whole[:, None] - told).amax((0, 2)) / whole.amax().clamp_min(torch.finfo(whole.dtype).tiny)
    return Series(phi, known, torch.cat([left.new_ones(1), left]).double())


def _range(phi: Activation, q: Tensor) -> Range | None:
    low, high = (float(end.sqrt().log1p()) for end in q.double().aminmax())
    if low == high:
        return None
    middle, radius = (low + high) / 2, (high - low) / 2

    def function(x: np.ndarray) -> Any:
        at = torch.from_numpy(middle + radius * x).expm1().clamp_min(0.0).square()
        return _coefficients(phi, at, _TERMS).flatten(0, 1).T.numpy()

    for degree in _DEGREES:
        table = chebinterpolate(function, degree)
        if np.abs(table[-2:]).max() <= _SMALL * np.abs(table).max():
            return Range(low, high - low, torch.from_numpy(table))
    return None


def _coefficients(phi: Activation, q: Tensor, terms: int) -> Tensor:
    """`[2, terms, N]`, by quadrature."""
    assert phi.derivative is not None
    found = [phi.coefficients(q, terms), hermite_coefficients(phi.derivative, q, terms, phi.kinks)]
    return torch.stack(found).mT
