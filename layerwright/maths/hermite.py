"""A function of a Gaussian in normalised Hermite polynomials, orthonormal under it: E h_m(z) h_n(z) = [m = n].

One-dimensional quadrature of φ(√q z) gives everything that a pair of correlated Gaussians asks of φ (Mehler's formula),

    E φ(u) φ(v) = Σ_n a_n(√q₁) a_n(√q₂) ρⁿ,    a_n(√q) = E φ(√q z) h_n(z),

so that nothing two-dimensional is ever integrated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Panels of the integral over z > 0: dense near 0, where φ(√q z) turns fast if q is large, out to where e^(−z²/2) ends.
_PANELS = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 10.5, 13.0)
# A second, coarser rule with other panels: an integral on which the two differ is infinite, or φ is too rough.
_FINE, _COARSE = (24, 1.0), (16, 11 / 13)
_AGREE = 1e-4
# Variances integrated at once, so that memory stays bounded however many inputs differ in norm.
_CHUNK = 512

Function = Callable[[Tensor], Tensor]


def hermite_polynomials(z: Tensor, terms: int) -> Iterator[Tensor]:
    """The normalised probabilists' Hermite polynomials h_0(z), h_1(z), …, h_(terms−1)(z), one after another.

        h_(n+1) = (z h_n − √n h_(n−1)) / √(n+1)

    Example:
        >>> [round(float(h), 4) for h in hermite_polynomials(torch.tensor(3.0), 3)]
        [1.0, 3.0, 5.6569]
    """
    before, now = torch.zeros_like(z), torch.ones_like(z)
    for n in range(terms):
        yield now
        before, now = now, (z * now - math.sqrt(n) * before) / math.sqrt(n + 1)


def mean_square(function: Function, q: Tensor, kinks: tuple[float, ...] = ()) -> Tensor:
    """E φ(√q z)² for every variance in q.

    Args:
        function: φ, elementwise on float64 tensors.
        q: variances, any shape, finite and not negative.
        kinks: where φ or a derivative of it jumps, besides 0; the integral is split there.

    Raises:
        ValueError: φ is not finite, or not square integrable as far as quadrature can tell.

    Example:
        >>> mean_square(torch.relu, torch.tensor([1.0, 4.0]))
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    return _chunked(lambda part: _mean_square(function, part, kinks), q, ())


def mean_square_slope(function: Function, q: Tensor, kinks: tuple[float, ...] = ()) -> Tensor:
    """d/dq E φ(√q z)² = E φ(√q z)² (z² − 1) / 2q for every variance in q, which must be positive.

    Example:
        >>> mean_square_slope(torch.relu, torch.tensor([1.0, 4.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def slopes(part: Tensor) -> Tensor:
        _mean_square(function, part, kinks)
        z, weight = _rule(part, kinks, *_FINE)
        # A constant has no slope: without φ(0)² it cannot drown the slope at small q.
        squares = _values(function, part, z).square() - function(torch.zeros(1, dtype=z.dtype)).square()
        return (weight * squares * (z.square() - 1)).sum(-1) / (2 * part)

    return _chunked(slopes, q, ())


def hermite_coefficients(function: Function, q: Tensor, terms: int, kinks: tuple[float, ...] = ()) -> Tensor:
    """a_n(√q) = E φ(√q z) h_n(z) for n < terms, `[..., terms]`, float64.

    Arguments and errors as in `mean_square`.

    Example:
        >>> hermite_coefficients(torch.square, torch.tensor(1.0), 3).round(decimals=4).abs()  # x² = 1 + √2 h_2(x)
        tensor([1.0000, 0.0000, 1.4142], dtype=torch.float64)
    """

    def coefficients(part: Tensor) -> Tensor:
        _mean_square(function, part, kinks)
        z, weight = _rule(part, kinks, *_FINE)
        values = weight * _values(function, part, z)
        if any(kinks):
            return torch.stack([(values * h).sum(-1) for h in hermite_polynomials(z, terms)], -1)
        return values @ _at_nodes(terms)

    return _chunked(coefficients, q, (terms,))


def hermite_series(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """Σ_n a_n b_n ρⁿ by Horner's rule; a `[..., terms]` and b `[..., terms]` broadcast against ρ `[...]`.

    Example:
        >>> hermite_series(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.5, -0.5]))
        tensor([ 4., -2.])
    """
    total = torch.zeros_like(rho)
    for x, y in zip(reversed(a.unbind(-1)), reversed(b.unbind(-1))):
        total = total * rho + x * y
    return total


def _chunked(compute: Callable[[Tensor], Tensor], q: Tensor, tail: tuple[int, ...]) -> Tensor:
    flat = q.detach().reshape(-1).cpu().double()
    if not (flat.isfinite().all() and (flat >= 0).all()):
        raise ValueError(
            "got a variance that is negative or not finite; expected E u² of a Gaussian: scale the inputs down"
        )
    parts = [compute(part) for part in flat.split(_CHUNK)] if len(flat) else [flat.new_empty(0, *tail)]
    return torch.cat(parts).reshape(q.shape + tail).to(q.device)


def _mean_square(function: Function, q: Tensor, kinks: tuple[float, ...]) -> Tensor:
    rules = (_rule(q, kinks, *_FINE), _rule(q, kinks, *_COARSE))
    fine, coarse = ((weight * _values(function, q, z).square()).sum(-1) for z, weight in rules)
    wrong = ~((fine - coarse).abs() <= _AGREE * fine)
    if wrong.any():
        raise ValueError(
            "got a function whose mean square does not converge under a Gaussian of variance "
            f"{q[wrong][0].item():.4g}; expected one that is square integrable there, and smooth but for its `kinks`"
        )
    return fine


def _values(function: Function, q: Tensor, z: Tensor) -> Tensor:
    values = function(q.sqrt().unsqueeze(-1) * z)
    if not values.isfinite().all():
        raise ValueError(
            f"got a function that is NaN or infinite between ±{13 * float(q.max()) ** 0.5:.4g}; "
            "expected one that is finite on the whole line"
        )
    return values


def _rule(q: Tensor, kinks: tuple[float, ...], nodes: int, scale: float) -> tuple[Tensor, Tensor]:
    """Nodes z and weights of E f(z), z ~ N(0, 1): Gauss-Legendre on panels.

    Each `[Q, panels · nodes]`, or `[1, …]`, the same for every variance, without kinks beside 0.
    """
    half = scale * torch.tensor(_PANELS, dtype=torch.float64)
    edges = torch.cat([-half.flip(0), half[1:]])[None]
    if inner := [kink for kink in kinks if kink]:
        at = torch.tensor(inner, dtype=torch.float64) / q.sqrt().unsqueeze(-1)
        edges = torch.cat([edges.expand(len(q), -1), at.clamp(edges.min(), edges.max())], -1).sort(-1).values
    x, w = _legendre(nodes)
    middle, radius = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=-1) / 2
    z = (middle.unsqueeze(-1) + radius.unsqueeze(-1) * x).flatten(-2)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return z, (radius.unsqueeze(-1) * w).flatten(-2) * density


@lru_cache(4)
def _at_nodes(terms: int) -> Tensor:
    """Hermite polynomials at the nodes of the finer rule without kinks, `[nodes, terms]`."""
    return torch.stack(list(hermite_polynomials(_rule(torch.ones(1), (), *_FINE)[0][0], terms)), -1)


@lru_cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w)
