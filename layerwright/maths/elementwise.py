"""A user's callable as a function of one number: held to be elementwise, differentiated, and recognised."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.maths.hermite import Function

_POINTS = torch.linspace(-6.03, 6.07, 98, dtype=torch.float64)
# Two functions that agree here are one: also near 0, and far out, where a clamp would show.
_EVERYWHERE = torch.cat([_POINTS * scale for scale in (1e-3, 1.0, 10.0, 1e3)])

# Where jumps are looked for, halved until neighbours are one number; what is then left of a jump; how many may be.
_EDGES, _HALVINGS, _JUMP, _MOST = torch.linspace(-10.0, 10.0, 1281, dtype=torch.float64), 60, 1e-7, 32


def elementwise(given: Callable[..., Any], name: str) -> Function:
    """The callable on float64 tensors of the CPU; a module is copied, its dropout off.

    Raises:
        ValueError: it fails, is random, changes the shape, mixes elements, or is not finite near 0.

    Example:
        >>> elementwise(nn.PReLU(init=0.5), "PReLU")(torch.tensor([-2.0, 3.0]).double())
        tensor([-1.,  3.], dtype=torch.float64)
    """
    copied = given
    if isinstance(given, nn.Module):
        with torch.inference_mode(False):  # its derivative is asked for
            copied = copy.deepcopy(given).to("cpu", torch.float64).eval().requires_grad_(False)

    def function(x: Tensor) -> Tensor:
        return torch.as_tensor(copied(x)).to(x.dtype)

    try:
        with torch.inference_mode(False), torch.enable_grad():  # some, of numpy, do not run where a slope is asked for
            some = function(_POINTS[1::3].clone().requires_grad_()).detach()
        values, again = (function(x).detach() for x in (_POINTS, _POINTS))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"activation {name!r} does not run on a tensor of float64: {reason}") from None
    if values.shape == _POINTS.shape and not values.isfinite().all():
        raise ValueError(f"activation {name!r} is NaN or infinite between -6 and 6; expected a function that is finite")
    if values.shape != _POINTS.shape or not torch.equal(values, again) or not _close(values[1::3], some):
        raise ValueError(f"activation {name!r} is random, or mixes elements; expected a function of each number alone")
    return function


def slope(function: Function) -> Function | None:
    """φ′ by autograd, or None where autograd sees no way from the input to the output, or a slope of 0 everywhere.

    Example:
        >>> slope(torch.square)(torch.tensor([3.0])), slope(torch.floor)
        (tensor([6.]), None)
    """

    def derivative(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            y = function(x)
            if not y.requires_grad:
                return torch.zeros_like(x)
            (found,) = torch.autograd.grad(y.sum(), x, allow_unused=True, materialize_grads=True)
        return found.detach()

    return derivative if derivative(_POINTS).any() else None


def kinks(function: Function) -> tuple[float, ...]:
    """Where a function or its slope jumps between −10 and 10, besides 0; none where there are more than can be meant.

    Each of many short intervals is halved down to rounding, towards the larger change: what is smooth has none left.

    Example:
        >>> kinks(lambda x: x.clamp(-1, 0.3)), kinks(torch.tanh)
        ((-1.0, 0.3), ())
    """
    found: set[float] = set()
    for curve in (function, slope(function)):
        if curve is not None:
            left, right = _EDGES[:-1], _EDGES[1:]
            for _ in range(_HALVINGS):
                middle = (left + right) / 2
                low, here, high = (curve(x).detach() for x in (left, middle, right))
                first = (here - low).abs() >= (high - here).abs()
                left, right = torch.where(first, left, middle), torch.where(first, middle, right)
            jumps = (curve(right) - curve(left)).detach().abs() > _JUMP
            found |= {round(x, 12) for x in right[jumps].tolist()} - {0.0}
    return tuple(sorted(found)) if len(found) <= _MOST else ()


def power_law(function: Function) -> tuple[int, float, float] | None:
    """(k, a, b) of the homogeneous function b xᵏ for x > 0, a xᵏ for x < 0 that has the same values at ±1 and ±2.

    Example:
        >>> power_law(torch.abs), power_law(torch.tanh)
        ((1, -1.0, 1.0), None)
    """
    minus_two, minus, plus, two = function(torch.tensor([-2.0, -1.0, 1.0, 2.0]).double()).tolist()
    one, double = (plus, two) if plus else (minus, minus_two)
    if not one or not 1 <= (ratio := double / one) < 2**20.5:
        return (1, 0.0, 0.0) if not (one or double) else None
    k = round(math.log2(ratio))
    found = k, minus * (-1) ** k, plus
    return found if math.isclose(ratio, 2**k, rel_tol=1e-12) else None


def same(first: Function, second: Function) -> bool:
    """Whether two functions agree to rounding wherever they are tried.

    Example:
        >>> same(torch.relu, lambda x: x.clamp(min=0)), same(torch.relu, lambda x: x.clamp(0, 20))
        (True, False)
    """
    return _close(first(_EVERYWHERE).detach(), second(_EVERYWHERE))


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-14)
