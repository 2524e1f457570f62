"""Closed forms of smooth activations: erf, gelu, sine, cosine and Gaussian features."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from layerwright.maths.arc_cosine import ClosedForm, Form, determinant, quick_determinant


def erf() -> ClosedForm:
    """φ(x) = erf x.

        F = 2/π asin(2c / √((1+2q₁)(1+2q₂))),    F′ = 4/π / E,    E² = (1+2q₁)(1+2q₂) − 4c²

    Reference: Williams (1997), Computing with Infinite Networks.

    Example:
        >>> round(float(erf().dual_derivative(*torch.tensor([0.0, 0.0, 0.0]))) * math.pi, 6)
        4.0
    """

    def root(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return (1 + 2 * (q1 + q2) + 4 * determinant(q1, c, q2)).sqrt()

    def value(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2(2 * c, root(q1, c, q2))

    def slope(x: Tensor) -> Tensor:
        return 2 / math.sqrt(math.pi) * torch.exp(-x.square())

    def together(q1: Tensor, c: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (1 + 2 * q1).rsqrt(), (1 + 2 * q2).rsqrt()
        s = (c * (2 * first)).mul_(second).clamp_(-1.0, 1.0)
        value, left = torch.asin(s).mul_(2 / math.pi), torch.addcmul(s.new_ones(()), s, s, value=-1)
        # It is above 0 but for rounding, where variances are as large as that asks for.
        return value, left.clamp_min_(torch.finfo(s.dtype).eps).rsqrt_().mul_(4 / math.pi * first).mul_(second)

    return ClosedForm(torch.erf, slope, value, lambda q1, c, q2: 4 / math.pi / root(q1, c, q2), together=together)


def gelu() -> ClosedForm:
    """φ(x) = x Φ(x), Φ the normal distribution function.

        F  = c/4 + (c atan2(c, E) + (c² + q₁q₂E²) / (p E)) / 2π,    p = (1+q₁)(1+q₂),    E² = p − c²
        F′ = 1/4 + (atan2(c, E) + c/E (1/E² + (2+q₁+q₂)/p)) / 2π

    Checked by quadrature.

    Example:
        >>> float(gelu().dual_derivative(*torch.tensor([1.0, 0.0, 1.0])))
        0.25
    """

    def value(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        p, e = (1 + q1) * (1 + q2), (1 + (q1 + q2) + determinant(q1, c, q2)).sqrt()
        return c / 4 + (c * torch.atan2(c, e) + (c.square() / e + q1 * q2 * e) / p) / (2 * math.pi)

    def derivative(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        p, e = (1 + q1) * (1 + q2), (1 + (q1 + q2) + determinant(q1, c, q2)).sqrt()
        return 0.25 + (torch.atan2(c, e) + c / e * (e**-2 + (2 + (q1 + q2)) / p)) / (2 * math.pi)

    def slope(x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    def together(q1: Tensor, c: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        square = quick_determinant(q1, c, q2).clamp_min_(0.0).add_(1 + q1).add_(q2)
        over_e = square.rsqrt()
        e = square.mul_(over_e)  # in less time than its root
        r, over = (2 * math.pi * (1 + q1)).reciprocal(), (1 + q2).reciprocal()
        half = torch.atan2(c, e).mul_(1 / (2 * math.pi)).add_(0.25)
        part = c * over_e
        # F = c half + (c part + q₁q₂ e) / 2πp, F′ = half + part (1/e² + (2 + q₁ + q₂)/p) / 2π
        value = (c * part).addcmul_(e, q1 * q2).mul_(r * over).addcmul_(c, half)
        inner = over_e.square_().mul_(1 / (2 * math.pi)).add_(r).add_(over / (2 * math.pi))
        return value, half.addcmul_(part, inner)

    return ClosedForm(functional.gelu, slope, value, derivative, together=together)


def sine(frequency: float) -> ClosedForm:
    """φ(x) = sin ax: F = e^(−a²(q₁+q₂)/2) sinh(a²c), F′ = a² e^(−a²(q₁+q₂)/2) cosh(a²c).

    Example:
        >>> float(sine(2.0).dual_derivative(*torch.tensor([0.0, 0.0, 0.0])))
        4.0
    """
    a = frequency
    odd, even = _waves(a)
    return ClosedForm(
        lambda x: torch.sin(a * x), lambda x: a * torch.cos(a * x), odd, lambda q1, c, q2: a**2 * even(q1, c, q2)
    )


def cosine(frequency: float) -> ClosedForm:
    """φ(x) = cos ax: F = e^(−a²(q₁+q₂)/2) cosh(a²c), F′ = a² e^(−a²(q₁+q₂)/2) sinh(a²c).

    Example:
        >>> float(cosine(2.0).dual(*torch.tensor([0.0, 0.0, 0.0])))
        1.0
    """
    a = frequency
    odd, even = _waves(a)
    return ClosedForm(
        lambda x: torch.cos(a * x), lambda x: -a * torch.sin(a * x), even, lambda q1, c, q2: a**2 * odd(q1, c, q2)
    )


def rbf(gamma: float) -> ClosedForm:
    """Random features √2 sin(√(2γ) x + π/4): F = e^(−γ(q₁+q₂−2c)), F′ = 2γ F.

    Raises:
        ValueError: a negative γ.

    Reference: Rahimi and Recht (2007), Random Features for Large-Scale Kernel Machines.

    Example:
        >>> float(rbf(0.5).dual(*torch.tensor([3.0, 3.0, 3.0])))
        1.0
    """
    if gamma < 0:
        raise ValueError(f"got gamma {gamma}; expected a number ≥ 0")
    a, root = math.sqrt(2 * gamma), math.sqrt(2)

    def value(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return torch.exp(-gamma * (q1 + q2 - 2 * c))

    return ClosedForm(
        lambda x: root * torch.sin(a * x + math.pi / 4),
        lambda x: root * a * torch.cos(a * x + math.pi / 4),
        value,
        lambda q1, c, q2: 2 * gamma * value(q1, c, q2),
    )


def _waves(frequency: float) -> tuple[Form, Form]:
    """The odd and the even wave, with e^(−a²(q₁+q₂)/2) taken inside, so that nothing overflows."""
    square = frequency**2

    def envelope(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return torch.exp(-square / 2 * (q1 + q2 - 2 * c.abs())) / 2

    def odd(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return -c.sign() * envelope(q1, c, q2) * torch.expm1(-2 * square * c.abs())

    def even(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return envelope(q1, c, q2) * (1 + torch.exp(-2 * square * c.abs()))

    return odd, even
