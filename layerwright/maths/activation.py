"""Activations as the theory of wide networks sees them: what φ does to a pair of correlated Gaussians.

The relu family and polynomials (`arc_cosine`), erf, gelu, sin, cos and Gaussian features (`duals`) have closed forms;
any other function takes its Hermite series (`hermite`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from layerwright.maths.activation_names import NAMES, RECOGNISED, by_name
from layerwright.maths.arc_cosine import ClosedForm, Form, homogeneous
from layerwright.maths.elementwise import elementwise, power_law, same, slope
from layerwright.maths.elementwise import kinks as kinks_of
from layerwright.maths.hermite import Function, hermite_coefficients, hermite_series, mean_square, mean_square_slope
from layerwright.maths.universality import Curve, Universality, universality

# Terms of the series of F and of F′: rounding in easy cases, 1e-7 where ρ = 0.999. They are doubled while what is left
# out may matter, as for tanh at variance 4.
_TERMS, _DERIVATIVE_TERMS, _MOST_TERMS = 32, 48, 256
_ENOUGH = 1e-6
Numbers = Tensor | float

__all__ = ["NAMES", "Activation", "activation"]


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation φ and its Gaussian averages; u and v have variances q₁, q₂ and covariance c.

    Averages are elementwise over broadcast tensors of any shape. Floating tensors keep their type, and all else takes
    theirs, or float64; the series' coefficients are always float64. Variances are finite and ≥ 0, and |c| ≤ √(q₁q₂).

    Attributes:
        name: what it is called in `activation`, or the callable's own name.
        function: φ, elementwise, on float64 tensors.
        derivative: φ′, None where φ jumps.
        closed: the dual's closed form, unchecked and fit to be compiled; None where the dual is a Hermite series.
        kinks: where φ or a derivative of it jumps, besides 0.

    Example:
        >>> relu = activation("relu")
        >>> relu.diagonal(3.0), relu.degree, relu.universality.name
        (tensor(1.5000, dtype=torch.float64), 1, 'scale-invariant')
    """

    name: str
    function: Function
    derivative: Function | None
    closed: ClosedForm | None = None
    kinks: tuple[float, ...] = ()

    def dual(self, q1: Numbers, c: Numbers, q2: Numbers) -> Tensor:
        """F = E φ(u) φ(v).

        A series cut after N terms is short by at most |ρ|ᴺ √(t₁t₂), t = `tail(q, N)`: N is 32, doubled up to 256 while
        that bound is above 1e-6 of √(F(q₁, q₁, q₁) F(q₂, q₂, q₂)). On its diagonal q₁ = c = q₂ it is exact.

        Raises:
            ValueError: no covariance matrix, or φ is not finite or not square integrable.

        Example:
            >>> activation("erf").dual(0.5, 0.5, 0.5)  # asin(1/2) · 2/π
            tensor(0.3333, dtype=torch.float64)
        """
        q1, c, q2 = _covariances(q1, c, q2)
        if self.closed is not None:
            return self.closed.dual(q1, c, q2)
        return _series(self.coefficients, self.diagonal, _TERMS, q1, c, q2)

    def dual_derivative(self, q1: Numbers, c: Numbers, q2: Numbers) -> Tensor:
        """F′ = E φ′(u) φ′(v) = ∂F/∂c.

        Raises:
            ValueError: as in `dual`, or φ jumps, so that no tangent kernel exists.

        Example:
            >>> activation("relu").dual_derivative(1.0, 0.0, 1.0)
            tensor(0.2500, dtype=torch.float64)
        """
        q1, c, q2 = _covariances(q1, c, q2)
        if form := self._closed_derivative():
            return form(q1, c, q2)
        return _series(self._derivative_coefficients, self.diagonal_derivative, _DERIVATIVE_TERMS, q1, c, q2)

    def diagonal(self, q: Numbers) -> Tensor:
        """g(q) = E φ(√q z)², z ~ N(0, 1), to rounding.

        Example:
            >>> activation("sin").diagonal(0.0)
            tensor(0., dtype=torch.float64)
        """
        q, _, _ = _covariances(q, q, q)
        if self.closed is not None:
            return self.closed.dual(q, q, q)
        return mean_square(self.function, q, self.kinks).to(q.dtype)

    def diagonal_derivative(self, q: Numbers) -> Tensor:
        """E φ′(√q z)², to rounding; φ′(0)² at q = 0, or the limit from above where a closed form has its kink there.

        Raises:
            ValueError: as in `dual_derivative`.

        Example:
            >>> activation("tanh").diagonal_derivative(0.0)
            tensor(1., dtype=torch.float64)
        """
        q, _, _ = _covariances(q, q, q)
        if form := self._closed_derivative():
            return form(q, q, q)
        self._derivative_coefficients(q, 1)
        return mean_square(self._slope(), q, self.kinks).to(q.dtype)

    def diagonal_slope(self, q: Numbers) -> Tensor:
        """g′(q) = d/dq E φ(√q z)² for q > 0, which is χ∥ / C_W.

        Example:
            >>> activation("relu").diagonal_slope(3.0)
            tensor(0.5000, dtype=torch.float64)
        """
        q, _, _ = _covariances(q, q, q)
        return mean_square_slope(self.function, q, self.kinks).to(q.dtype)

    def coefficients(self, q: Numbers, terms: int = _TERMS) -> Tensor:
        """The Hermite coefficients a_n(√q) = E φ(√q z) h_n(z), n < terms, `[..., terms]`, float64.

        Example:
            >>> activation("linear").coefficients(4.0, 3).round(decimals=9).abs()
            tensor([0., 2., 0.], dtype=torch.float64)
        """
        q, _, _ = _covariances(q, q, q)
        return hermite_coefficients(self.function, q, terms, self.kinks)

    def tail(self, q: Numbers, terms: int = _TERMS) -> Tensor:
        """The share Σ a_n² of E φ(√q z)² that n ≥ terms hold, absolute, ≥ 0.

        Example:
            >>> bool(activation("tanh").tail(1.0) < 1e-6 < activation("relu").tail(1.0))
            True
        """
        return (self.diagonal(q) - self.coefficients(q, terms).square().sum(-1)).clamp_min(0.0)

    def sphere(self, q: Numbers = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """A = κ(0), A′ = κ′(0) and B′ = κ′(1) of the dual on a sphere, κ(ρ) = F(q, ρq, q) / F(q, q, q).

        B′ is infinite where φ jumps.

        Reference: arXiv 2204.14126.

        Example:
            >>> [round(float(x), 4) for x in activation("relu").sphere()]  # 1/π, 1/2, 1
            [0.3183, 0.5, 1.0]
        """
        q, _, _ = _covariances(q, q, q)
        g, a = self.diagonal(q), self.coefficients(q, 2)
        at_one = torch.full_like(g, math.inf) if self.derivative is None else q * self.diagonal_derivative(q) / g
        return a[..., 0].square() / g, a[..., 1].square() / g, at_one

    @property
    def degree(self) -> int | None:
        """Degree k where φ(tx) = tᵏ φ(x) for every t > 0, so that F = (q₁q₂)^(k/2) times a function of ρ; else None."""
        return self.closed.degree if self.closed is not None else None

    @cached_property
    def universality(self) -> Universality:
        """The class in which depth puts φ ("scale-invariant", "K* = 0", "half-stable", "none"), and K*.

        Example:
            >>> activation("gelu").universality
            Universality(name='half-stable', critical_variance=3.5615...)
        """
        return universality(self.diagonal, self.diagonal_slope, self.diagonal_derivative)

    def _slope(self) -> Function:
        if self.derivative is None:
            raise ValueError(f"activation {self.name!r} jumps: it has no derivative, and so no tangent kernel")
        return self.derivative

    def _closed_derivative(self) -> Form | None:
        self._slope()
        return self.closed.dual_derivative if self.closed is not None else None

    def _derivative_coefficients(self, q: Tensor, terms: int) -> Tensor:
        """E φ′(√q z) h_n(z) = √(n+1) a_(n+1)(√q) / √q: a function for which the two differ jumps somewhere."""
        found = hermite_coefficients(self._slope(), q, max(terms, 2), self.kinks)
        parts = self.coefficients(q, 3)[..., 1:] * found.new_tensor([1.0, math.sqrt(2)])
        if ((parts - q.sqrt().unsqueeze(-1) * found[..., :2]).abs() > 1e-3 * parts.abs() + 1e-6).any():
            raise ValueError(
                f"activation {self.name!r} is not the integral of its derivative: it jumps, and has no tangent kernel"
            )
        return found[..., :terms]


def activation(given: str | Function | Activation, kinks: tuple[float, ...] = ()) -> Activation:
    """The activation of that name, that module, or that function.

    A callable that agrees with a closed form on 98 points takes it: `nn.ReLU()`, `torch.abs` and
    `nn.LeakyReLU(0.3)` are homogeneous, `nn.GELU()` and `torch.sin` are known. Derivatives are taken by autograd.

    Args:
        given: a name ("gelu"), one with its parameter ("leaky_relu:0.1", "sin:2", "hermite:3"), a module, or any
            function on tensors that acts on each element by itself. The caller's module is copied, never changed.
        kinks: for a callable, where it or a derivative of it jumps, besides 0 (−1 and 1 for hardtanh); left out, jumps
            of it and of its slope are looked for.

    Raises:
        ValueError: an unknown name, a parameter that does not fit, or a function that is random, not elementwise, or
            not finite.

    Example:
        >>> activation(torch.nn.LeakyReLU(0.5)).dual(1.0, 1.0, 1.0)
        tensor(0.6250, dtype=torch.float64)
        >>> activation("leaky_relu:0.5").name, activation(torch.tanh).closed
        ('leaky_relu:0.5', None)
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        return _activation(given, by_name(given))
    if not callable(given):
        raise ValueError(
            f"got {type(given).__name__} as activation; expected a name, a module or a function of tensors"
        )
    name = getattr(given, "__name__", type(given).__name__)
    function = elementwise(given, name)
    if (power := power_law(function)) and same(function, (form := homogeneous(*power)).function):
        return _activation(name, form)
    for known, make in RECOGNISED.items():
        if same(function, (form := make()).function):
            return _activation(known, form)
    return _activation(name, function, tuple(kinks) or kinks_of(function))


def _activation(name: str, given: ClosedForm | Function, kinks: tuple[float, ...] = ()) -> Activation:
    if isinstance(given, ClosedForm):
        return Activation(name, given.function, given.derivative, given)
    return Activation(name, given, slope(given), kinks=kinks)


def _covariances(*given: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """(q₁, c, q₂) as floating tensors of one type, checked."""
    types = [x.dtype for x in given if isinstance(x, Tensor) and x.is_floating_point()]
    dtype = max(types, key=lambda d: d.itemsize, default=torch.float64)
    q1, c, q2 = (torch.as_tensor(x, dtype=dtype) for x in given)
    if not all((q >= 0).all() and q.isfinite().all() for q in (q1, q2)):
        raise ValueError(
            "got a variance that is negative or not finite; expected E u² of a Gaussian: scale the inputs down"
        )
    # Inner products are as near as a Gram matrix comes, in half the digits; NaN is no covariance either.
    slack = 1 + math.sqrt(torch.finfo(dtype).eps)
    if not (c.abs() <= slack * (q1 * q2).sqrt()).all():
        raise ValueError("got a covariance that is NaN or larger than √(q₁q₂); expected c = E uv of two Gaussians")
    return q1, c, q2


def _series(
    coefficients: Callable[[Tensor, int], Tensor], diagonal: Curve, terms: int, q1: Tensor, c: Tensor, q2: Tensor
) -> Tensor:
    """Mehler's series, its coefficients integrated once for each distinct variance, and the diagonal written in."""
    norms, index = torch.cat([q1.reshape(-1), q2.reshape(-1)]).double().unique(return_inverse=True)
    s = q1.sqrt() * q2.sqrt()
    rho = torch.where(s > 0, c / s, torch.zeros_like(s)).clamp(-1.0, 1.0)
    on_diagonal = (q1 == q2) & (c == q1)
    exact, largest = diagonal(norms), float(rho.abs().masked_fill(on_diagonal, 0.0).max()) if rho.numel() else 0.0
    table = coefficients(norms, terms)
    while 2 * terms <= _MOST_TERMS and largest**terms * _left_out(table, exact) > _ENOUGH:
        terms *= 2
        table = coefficients(norms, terms)
    first, second = index[: q1.numel()].reshape(q1.shape), index[q1.numel() :].reshape(q2.shape)
    table, exact = table.to(c.dtype), exact.to(c.dtype)
    return torch.where(on_diagonal, exact[first], hermite_series(table[first], table[second], rho))


def _left_out(table: Tensor, exact: Tensor) -> float:
    """The largest share of a mean square that coefficients leave out."""
    missing = (exact - table.square().sum(-1)) / exact.clamp_min(torch.finfo(exact.dtype).tiny)
    return float(missing.max()) if missing.numel() else 0.0
