"""The activations that have a name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from layerwright.maths import duals
from layerwright.maths.arc_cosine import ClosedForm, hermite, homogeneous
from layerwright.maths.hermite import Function
from layerwright.maths.optimal_activation import optimal

# Closed forms that a callable is held against, without a parameter.
RECOGNISED: dict[str, Callable[..., ClosedForm]] = {
    "erf": duals.erf,
    "gelu": duals.gelu,
    "sin": lambda frequency=1.0: duals.sine(frequency),
    "cos": lambda frequency=1.0: duals.cosine(frequency),
}
# Those that may take a parameter, or have a closed form.
_MADE: dict[str, Callable[..., ClosedForm | Function]] = {
    **RECOGNISED,
    "linear": lambda: homogeneous(1, 1.0, 1.0),
    "relu": lambda: homogeneous(1, 0.0, 1.0),
    "leaky_relu": lambda slope=0.01: homogeneous(1, slope, 1.0),
    "abs": lambda: homogeneous(1, -1.0, 1.0),
    "squared_relu": lambda: homogeneous(2, 0.0, 1.0),
    "step": lambda: homogeneous(0, 0.0, 1.0),
    "sign": lambda: homogeneous(0, -1.0, 1.0),
    "rectified": lambda degree: homogeneous(degree, 0.0, 1.0),
    "monomial": lambda degree: homogeneous(degree, 1.0, 1.0),
    "hermite": hermite,
    "rbf": lambda gamma=1.0: duals.rbf(gamma),
    "optimal": optimal,
}
_SMOOTH: dict[str, Function] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
# Every name that `activation` knows; a parameter follows a colon.
NAMES = (*_MADE, *_SMOOTH)


def by_name(given: str) -> ClosedForm | Function:
    """The closed form of that name, or the function where there is none; a parameter follows a colon.

    Raises:
        ValueError: an unknown name, with the nearest one, or a parameter that does not fit.

    Example:
        >>> by_name("squared_relu").degree, by_name("leaky_relu:0.5").function(torch.tensor(-2.0))
        (2, tensor(-1.))
    """
    name, *values = given.split(":")
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, 1, 0.0)[0]
        raise ValueError(f"unknown activation {given!r}; nearest: {nearest!r}; known: {', '.join(NAMES)}")
    if name in _SMOOTH and not values:
        return _SMOOTH[name]
    try:
        return _MADE[name](*(_finite(value) for value in values))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"got activation {given!r}; expected a slope (leaky_relu:0.1), a frequency (sin:2, cos:2), a gamma ≥ 0 "
            "(rbf:0.5), a dimension from 0.5 on (optimal:4) or a degree from 0 to 20 (monomial:3, rectified:3, "
            "hermite:3); no other name takes a parameter"
        ) from None


def _finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number
