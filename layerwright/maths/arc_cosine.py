"""Closed forms through the angle between u and v: homogeneous activations and Hermite polynomials."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.hermite import Function, hermite_polynomials

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
Both = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_MOST = 20


class ClosedForm(NamedTuple):
    """An activation beside its averages over Gaussians u, v with variances q₁, q₂ and covariance c.

    Each form takes (q₁, c, q₂), is elementwise over broadcast tensors, keeps their type, checks nothing, and can be
    compiled. All go through √D, D = q₁q₂ − c², and atan2 in place of acos(ρ): D is exactly 0 on the diagonal
    q₁ = c = q₂, so that the diagonal is exact, and near it nothing is lost beyond the rounding of the inputs.

    Attributes:
        function: φ.
        derivative: φ′, None where φ jumps.
        dual: E φ(u) φ(v).
        dual_derivative: E φ′(u) φ′(v), None where φ jumps.
        degree: k where φ(tx) = tᵏ φ(x) for every t > 0, else None.
        together: (F, F′) in few passes over many pairs, where that is worth writing: near the diagonal q₁ = c = q₂
            F′ may keep half of its digits, so that there the caller puts what it knows. None: one after the other.
    """

    function: Function
    derivative: Function | None
    dual: Form
    dual_derivative: Form | None
    degree: int | None = None
    together: Both | None = None

    def both(self, q1: Tensor, c: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """F and F′ of an activation that has F′, for many pairs.

        Example:
            >>> one = torch.tensor([1.0, 1.0], dtype=torch.float64)
            >>> [x.tolist() for x in homogeneous(1, 0.0, 1.0).both(one, torch.tensor([-1.0, 1.0]).double(), one)]
            [[0.0, 0.5], [0.0, 0.5]]
        """
        if self.together is not None:
            return self.together(q1, c, q2)
        assert self.dual_derivative is not None
        return self.dual(q1, c, q2), self.dual_derivative(q1, c, q2)


def determinant(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
    """q₁q₂ − c², at least 0; as (s − c)(s + c), s = √(q₁q₂), it keeps its digits where ρ nears 1 and q₁ = q₂.

    Example:
        >>> determinant(*torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64))
        tensor(0., dtype=torch.float64)
    """
    s = (q1 * q2).sqrt()
    return ((s - c) * (s + c)).clamp_min(0.0)


def quick_determinant(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
    """`determinant` as a tensor of its own; where rows of variances meet columns of them, in few passes over the pairs.

    On the diagonal it is then 0 to rounding only, and may be below it; elsewhere the rounding of c costs as much.

    Example:
        >>> quick_determinant(torch.tensor([[4.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 1.0]))
        tensor([[3., 0.]])
    """
    if q1.shape == q2.shape:
        return determinant(q1, c, q2)
    return torch.addcmul(q1 * q2, c, c, value=-1)


def angle(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
    """The angle acos(c / √(q₁q₂)) between u and v, in [0, π].

    Example:
        >>> angle(*torch.tensor([1.0, 1 - 2**-40, 1.0], dtype=torch.float64)) / (2 * 2**-40) ** 0.5
        tensor(1.0000, dtype=torch.float64)
    """
    return _root_and_angle(q1, c, q2)[1]


def homogeneous(degree: float, negative: float, positive: float) -> ClosedForm:
    """φ(x) = b xᵏ for x > 0, a xᵏ for x < 0: linear, relu, leaky relu, |x|, step, squared relu, monomials.

        F_k = ab M_k + (b − a)² P_k,    F′ = k² F_(k−1)
        M_k = E uᵏ vᵏ,    P_k = E[uᵏ vᵏ; u, v > 0] = (M_k (π − θ) + B_k √D) / 2π

    The polynomials B_k follow from dP_k/dc = k² P_(k−1); derived, and checked by quadrature. P_0, P_1 and P_2 are the
    arc-cosine kernels.

    Args:
        degree: k, a whole number from 0 to 20.
        negative: a, the factor of xᵏ (with its sign) for x < 0.
        positive: b, the factor of xᵏ for x > 0.

    Raises:
        ValueError: another degree.

    Reference: Cho and Saul (2009), Kernel Methods for Deep Learning.

    Example:
        >>> relu = homogeneous(1, 0.0, 1.0)
        >>> round(float(relu.dual(*torch.tensor([1.0, 0.0, 1.0]))) * 2 * math.pi, 6)
        1.0
    """
    order = _whole(degree)

    def function(x: Tensor, k: int = order) -> Tensor:
        return torch.where(x > 0, x.new_tensor(positive), x.new_tensor(negative)) * x**k

    def form(k: int, q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        whole = negative * positive * _moment(k, q1 * q2, c)
        if negative == positive:
            return whole.expand(torch.broadcast_shapes(q1.shape, c.shape, q2.shape))
        root, theta = _root_and_angle(q1, c, q2)
        half = _moment(k, q1 * q2, c) * (math.pi - theta) + _boundary(k, q1 * q2, c) * root
        return whole + (positive - negative) ** 2 / (2 * math.pi) * half

    def dual(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return form(order, q1, c, q2)

    def dual_derivative(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return order**2 * form(max(order - 1, 0), q1, c, q2)

    def together(q1: Tensor, c: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        square = quick_determinant(q1, c, q2).clamp_min_(0.0)
        root = square.mul_((square + torch.finfo(c.dtype).tiny).rsqrt_())  # in less time than its root
        jump = (positive - negative) ** 2 / (2 * math.pi)
        half = torch.atan2(c, root).add_(math.pi / 2).mul_(jump)  # π − θ
        value = root.mul_(jump).addcmul_(c, half)
        both = negative * positive
        return (value.add_(c, alpha=both), half.add_(both)) if both else (value, half)

    if order == 0 and negative != positive:
        return ClosedForm(function, None, dual, None, 0)
    slope = partial(function, k=max(order - 1, 0))
    quick = together if order == 1 and negative != positive else None
    return ClosedForm(function, lambda x: order * slope(x), dual, dual_derivative, order, quick)


def hermite(degree: float) -> ClosedForm:
    """The normalised Hermite polynomial h_k: its dual is ρᵏ at unit variance, and F′ = k F_(k−1).

        F_k = Σ_j k! / (4ʲ j!² (k−2j)!) ((q₁−1)(q₂−1))ʲ c^(k−2j)

    Derived from the expansion of h_k(s z) in h_n(z), and checked by quadrature.

    Example:
        >>> float(hermite(3).dual(*torch.tensor([1.0, 0.5, 1.0])))
        0.125
    """
    order = _whole(degree)
    below = max(order - 1, 0)

    def function(x: Tensor) -> Tensor:
        return deque(hermite_polynomials(x, order + 1), 1).pop()

    def derivative(x: Tensor) -> Tensor:
        return math.sqrt(order) * deque(hermite_polynomials(x, below + 1), 1).pop()

    def form(k: int, q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        found = _moment(k, (q1 - 1) * (q2 - 1), c) / math.factorial(k)
        return found.expand(torch.broadcast_shapes(q1.shape, c.shape, q2.shape))

    def dual(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return form(order, q1, c, q2)

    def dual_derivative(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
        return order * form(below, q1, c, q2)

    return ClosedForm(function, derivative, dual, dual_derivative, order if order < 2 else None)


def _whole(degree: float) -> int:
    if degree != int(degree) or not 0 <= degree <= _MOST:
        raise ValueError(f"got degree {degree}; expected a whole number from 0 to {_MOST}")
    return int(degree)


def _root_and_angle(q1: Tensor, c: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    root = determinant(q1, c, q2).sqrt()
    # −0 + 0 is 0: atan2(0, −0) would be π.
    return root, torch.atan2(root, c + 0.0)


def _moment(k: int, product: Tensor, c: Tensor) -> Tensor:
    """E uᵏ vᵏ as a polynomial in the product q₁q₂ and c."""
    return _polynomial(_moments(k), k, product, c)


def _boundary(k: int, product: Tensor, c: Tensor) -> Tensor:
    """B_k of `homogeneous`."""
    return _polynomial(_boundaries(k), k - 1, product, c)


def _polynomial(factors: tuple[float, ...], k: int, product: Tensor, c: Tensor) -> Tensor:
    """Σ_j fⱼ productʲ c^(k−2j), without a shape where it depends on neither."""
    total = c.new_tensor(0.0)
    for j, factor in enumerate(factors):
        powers = [base**n for base, n in ((product, j), (c, k - 2 * j)) if n]
        total = total + math.prod(powers, start=factor)
    return total


@lru_cache
def _moments(k: int) -> tuple[float, ...]:
    """Coefficients of (q₁q₂)ʲ c^(k−2j) in E uᵏ vᵏ."""
    f = math.factorial
    return tuple(f(k) ** 2 / (4**j * f(j) ** 2 * f(k - 2 * j)) for j in range(k // 2 + 1))


@lru_cache
def _boundaries(k: int) -> tuple[float, ...]:
    """Coefficients of (q₁q₂)ʲ c^(k−1−2j) in B_k, from M_k + B_k′ D − c B_k = k² B_(k−1) D, power by power of c."""
    if k == 0:
        return ()
    moments, before = dict(enumerate(_moments(k))), dict(enumerate(_boundaries(k - 1)))
    found: dict[int, float] = {-1: 0.0}
    for j in range((k - 1) // 2 + 1):
        m = k - 2 * j
        lower = before.get(j - 1, 0.0) - before.get(j, 0.0)
        found[j] = (moments[j] + (m + 1) * found[j - 1] - k**2 * lower) / m
    return tuple(found[j] for j in range((k - 1) // 2 + 1))
