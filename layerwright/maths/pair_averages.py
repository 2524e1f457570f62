"""Averages of an activation over pairs of units, where many pairs share the variances of their two sides.

`Activation.dual` checks what it is given, and looks up each variance. Here that is done once for every variance
(`features`), and the pairs take it from there, unchecked (`averages`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.hermite import hermite_coefficients

# Terms of a series are doubled while more than this share of a mean square is left out.
_TERMS, _MOST_TERMS, _LEFT_OUT = 32, 256, 1e-6


def features(phi: Activation, q: Tensor) -> Tensor:
    """What `averages` has to know of each variance: itself, or (g, g′, √q, series of φ, series of φ′).

    Args:
        phi: an activation that has a tangent kernel.
        q: variances, any shape.

    Returns:
        `[features, *q.shape]`, of the type of q.

    Raises:
        ValueError: as in `Activation.diagonal_derivative`.
    """
    if phi.closed is not None:
        return q[None]
    terms, mean, slope = _TERMS, phi.diagonal(q), phi.diagonal_derivative(q)
    assert phi.derivative is not None
    while True:
        a = phi.coefficients(q, terms)
        b = hermite_coefficients(phi.derivative, q, terms, phi.kinks)
        left = [(g - x.square().sum(-1)) / g.clamp_min(torch.finfo(g.dtype).tiny) for g, x in ((mean, a), (slope, b))]
        if 2 * terms > _MOST_TERMS or max(float(part.max()) for part in left) <= _LEFT_OUT:
            return torch.cat([torch.stack([mean, slope, q.sqrt()]), *(x.to(q.dtype).movedim(-1, 0) for x in (a, b))])
        terms *= 2


def averages(phi: Activation, first: Tensor, c: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """E φ(u) φ(v) and E φ′(u) φ′(v) for pairs of covariance c.

    Args:
        phi: the activation.
        first: features of the u, `[features, …]`.
        c: covariances, which the features broadcast to.
        second: features of the v.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> relu, q = activation("relu"), torch.tensor([1.0])
        >>> [round(float(x) * 4, 6) for x in averages(relu, features(relu, q), q, features(relu, q))]
        [2.0, 2.0]
    """
    if phi.closed is not None:
        return phi.closed.both(first[0], c, second[0])
    s = first[2] * second[2]
    rho = torch.where(s > 0, c / s, 0.0).clamp(-1.0, 1.0)
    terms = (len(first) - 3) // 2
    found = []
    for start in (3, 3 + terms):
        total = torch.zeros_like(rho)
        for n in reversed(range(start, start + terms)):
            total = torch.addcmul(first[n] * second[n], total, rho)
        found.append(total)
    return found[0], found[1]


def diagonal(phi: Activation, known: Tensor) -> tuple[Tensor, Tensor]:
    """E φ(u)² and E φ′(u)², which `averages` keeps half of the digits of where u and v are one.

    Args:
        phi: the activation.
        known: features of the u, `[features, …]`.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> relu = activation("relu")
        >>> [x.item() for x in diagonal(relu, features(relu, torch.tensor(1.0)))]
        [0.5, 0.5]
    """
    if phi.closed is None:
        return known[0], known[1]
    assert phi.closed.dual_derivative is not None
    q = known[0]
    return phi.closed.dual(q, q, q), phi.closed.dual_derivative(q, q, q)
