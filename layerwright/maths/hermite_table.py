"""Hermite series of an activation for many norms: quadrature for a few of them, and polynomials between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebinterpolate, chebvander
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.hermite import hermite_coefficients

_TERMS = 256
# Norms up to which each has its own quadrature; degrees of the polynomials; what their last coefficients may be.
_FEW, _DEGREES, _SMALL = 32, (31, 63, 127), 1e-12
# The same of mean squares, which are to be exact, and how far norms may be apart for it.
_EXACT, _FAR = 1e-15, 100.0
# Of how many activations and sets of few norms it is kept.
_KEPT = 64


class Range(NamedTuple):
    """Numbers of each norm as polynomials in log(1 + √q): smooth where √q is small, and over many octaves of it.

    Attributes:
        low: the smallest log(1 + √q).
        width: how far the largest is from it.
        table: Chebyshev coefficients, `[degree + 1, numbers]`.
    """

    low: float
    width: float
    table: Tensor

    def at(self, q: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Those chosen of the numbers, `[numbers, N]`; left out, all."""
        x = (q.double().sqrt().log1p() - self.low) * (2 / self.width) - 1
        powers = torch.from_numpy(chebvander(x.clamp(-1.0, 1.0).numpy(), len(self.table) - 1))
        return (powers @ (self.table if chosen is None else self.table[:, chosen])).T


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
        if self.range is None:
            found = _coefficients(self.phi, few, terms)
        else:
            chosen = torch.arange(2 * _TERMS).unflatten(0, (2, -1))[:, :terms]
            found = self.range.at(few, chosen.flatten()).unflatten(0, (2, -1))
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
    known = None
    if len(q) > _FEW:
        known = _range(lambda few: _by_quadrature(phi, few, _TERMS).flatten(0, 1), q, _SMALL)
        order = q.argsort()[torch.linspace(0, len(q) - 1, _FEW).round().long()]
        q, whole = q[order], whole[:, order]
    told = _coefficients(phi, q, _TERMS).square().cumsum(1)
    left = (whole[:, None] - told).amax((0, 2)) / whole.amax().clamp_min(torch.finfo(whole.dtype).tiny)
    return Series(phi, known, torch.cat([left.new_ones(1), left]).double())


def diagonals(phi: Activation, q: Tensor) -> Tensor:
    """E φ(u)² and E φ′(u)² for inputs of variances q, `[2, N]`, in their type.

    Raises:
        ValueError: φ cannot be averaged over them.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> q = torch.linspace(0.5, 2.0, 100, dtype=torch.float64)
        >>> bool((diagonals(tanh := activation("tanh"), q)[0] - tanh.diagonal(q)).abs().max() < 1e-14)
        True
    """
    if phi.closed is None and len(q) <= _FEW:
        return _diagonals_of_few(phi, tuple(q.tolist())).to(q.dtype)
    if phi.closed is None and q.max() <= _FAR * q.min():
        found = _range(partial(_diagonals, phi), q, _EXACT)
        if found is not None:
            return found.at(q).to(q.dtype)
    return _diagonals(phi, q)


def _diagonals(phi: Activation, q: Tensor) -> Tensor:
    return torch.stack([phi.diagonal(q), phi.diagonal_derivative(q)])


@lru_cache(_KEPT)
def _diagonals_of_few(phi: Activation, q: tuple[float, ...]) -> Tensor:
    return _diagonals(phi, torch.tensor(q, dtype=torch.float64))


def _range(function: Callable[[Tensor], Tensor], q: Tensor, small: float) -> Range | None:
    """Numbers `[numbers, N]` of variances as polynomials from the smallest to the largest of q, if these will do."""
    low, high = (float(end.sqrt().log1p()) for end in q.double().aminmax())
    if low == high:
        return None
    middle, radius = (low + high) / 2, (high - low) / 2

    def at(x: np.ndarray) -> Any:
        return function(torch.from_numpy(middle + radius * x).expm1().clamp_min(0.0).square()).T.numpy()

    for degree in _DEGREES:
        table = chebinterpolate(at, degree)
        if np.abs(table[-2:]).max() <= small * np.abs(table).max():
            return Range(low, high - low, torch.from_numpy(table))
    return None


def _coefficients(phi: Activation, q: Tensor, terms: int) -> Tensor:
    """`[2, terms, N]`, float64."""
    return _coefficients_of_few(phi, tuple(q.tolist()))[:, :terms] if len(q) <= _FEW else _by_quadrature(phi, q, terms)


@lru_cache(_KEPT)
def _coefficients_of_few(phi: Activation, q: tuple[float, ...]) -> Tensor:
    return _by_quadrature(phi, torch.tensor(q, dtype=torch.float64), _TERMS)


def _by_quadrature(phi: Activation, q: Tensor, terms: int) -> Tensor:
    assert phi.derivative is not None
    found = [phi.coefficients(q, terms), hermite_coefficients(phi.derivative, q, terms, phi.kinks)]
    return torch.stack(found).mT
