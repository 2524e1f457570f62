"""A residual tower as a sum over paths: what goes through no branch, through one branch, through two, and so on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# How far two ways to a sum may be apart, as a share of what it is for a random vector; rounding is 1e-4 of that, or
# 0.03 in half precision.
_MISSING = 0.1
Branch = Callable[[Tensor], Tensor]


def residual_expansion(branches: Sequence[Branch], z: Tensor, order: int = 3) -> Tensor:
    """The tower z ↦ (1 + λ f_L) … (1 + λ f_1)(z) as a power series in λ, by derivatives along λ at 0, block by block.

        F(λ) = z + λ Σ_i f_i + λ² Σ_{i<j} f_j′ f_i + λ³ Σ_k (f_k′ Σ_{i<j<k} f_j′ f_i + ½ f_k″ (Σ_{i<k} f_i)²) + …

    all at z. Order k is the sum over the C(L, k) paths through k branches, where branches are linear; where they are
    not, a branch can also read several others at once. Every branch is differentiated at z itself: one with kinks is
    taken for what it is near z, and the series need not converge at λ = 1. It does not where updates are large beside z
    and branches begin with a norm.

    Args:
        branches: f_1 … f_L, what each block adds to a stream. They are called once each, and differentiated order − 1
            times: `layer_norm` of torch must not be among their operations, whose third backward pass is wrong.
        z: the stream before the first.
        order: the last one, from 1 on; 3 costs about 6 calls of the branches, 4 costs 11.

    Returns:
        `[order + 1, *z.shape]`; order 0 is z.

    Raises:
        ValueError: no floating numbers, or an order below 1.
        RuntimeError: a branch cannot be differentiated so many times.

    Example:
        >>> half, double = (lambda x: x / 2), (lambda x: 2 * x)
        >>> residual_expansion([half, double], torch.tensor([1.0]), order=3).flatten()  # 1, ½ + 2, ½ · 2
        tensor([1.0000, 2.5000, 1.0000, 0.0000])

    Reference: arXiv 2510.03470.
    """
    if not z.is_floating_point() or order < 1:
        raise ValueError(f"got order {order} of {z.dtype}; expected an order from 1 on, and floating numbers")
    series = [z, *(torch.zeros_like(z) for _ in range(order))]
    for branch in branches:
        # λ f is of one order more than f: the last order of the stream does not reach it.
        added = taylor(branch, series[:-1])
        series = [z, *(x + more for x, more in zip(series[1:], added))]
    return torch.stack(series)


def taylor(function: Branch, series: Sequence[Tensor]) -> list[Tensor]:
    """The power series of a function along a curve that is given by its own, up to the same order.

    Each derivative along the curve is two reverse passes: what a backward pass gives is linear in the vector it starts
    from, and its derivative by that vector is the forward one. Nested forward mode takes several times as long, and
    some functions of torch have none.

    Args:
        function: of one tensor.
        series: a_0, a_1, …, a_n of the curve a_0 + a_1 λ + … + a_n λⁿ.

    Raises:
        RuntimeError: it cannot be differentiated n times.

    Example:
        >>> one, nothing = torch.tensor(1.0), torch.tensor(0.0)
        >>> taylor(torch.exp, [nothing, one, nothing])  # 1 + λ + λ²/2
        [tensor(1.), tensor(1.), tensor(0.5000)]
    """
    with torch.inference_mode(False), torch.enable_grad():
        at = series[0].new_zeros((), requires_grad=True)
        x = series[-1]
        for coefficient in reversed(series[:-1]):
            x = coefficient + at * x
        derivatives = [function(x)]
        for _ in series[1:]:
            derivatives.append(_along(derivatives[-1], at))
    return [d.detach() / math.factorial(k) for k, d in enumerate(derivatives)]


def _along(values: Tensor, at: Tensor) -> Tensor:
    """The derivative of many values by one number, with its graph."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    start = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values).requires_grad_()
    (back,) = torch.autograd.grad(values, at, start, create_graph=True, materialize_grads=True)
    if not back.requires_grad:
        return torch.zeros_like(values)
    (found,) = torch.autograd.grad(back, start, create_graph=True, materialize_grads=True)
    # What autograd was not told of is missing from one of the two.
    if (back - (start * found).sum()).abs() > _MISSING * (found.norm() + back.abs()):
        raise RuntimeError("a part of the function has a first derivative and no second derivative")
    return found


class Truncations(NamedTuple):
    """What the orders of an expansion are worth, `[order + 1, ...]` each, 1 being ‖output − z‖².

    Attributes:
        energy: ‖order k‖².
        explained: 1 − ‖output − orders 0 … k‖², so that order 0 alone explains 0, and a tower that it is all of, 1;
            below 0 where the truncation is farther from the output than z is.
    """

    energy: Tensor
    explained: Tensor


def truncations(orders: Tensor, output: Tensor) -> Truncations:
    """How much of what a tower adds the orders of its expansion hold, each and together; lengths over the last axis.

    Args:
        orders: as `residual_expansion` gives them.
        output: what the tower makes of z.

    Returns:
        NaN where the tower adds nothing.

    Example:
        >>> orders = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
        >>> truncations(orders, torch.tensor([5.0, 0.0])).explained
        tensor([0.0000, 0.7500, 0.8750])
    """
    added = (output - orders[0]).square().sum(-1)
    unit = torch.where(added > 0, added, torch.nan)
    left = (output - orders.cumsum(0)).square().sum(-1)
    return Truncations(orders.square().sum(-1) / unit, 1 - left / unit)
