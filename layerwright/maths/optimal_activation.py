"""Activations that make an infinitely wide and deep classifier consistent, by the dimension of the data."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from layerwright.maths.hermite import Function, hermite_polynomials

# The highest Hermite polynomial of the family for dimensions below 2.
_HIGH = 7


def optimal(dimension: float) -> Function:
    """The function whose infinitely deep classifier is consistent for data of that many dimensions.

        d ≥ 2:  φ = 2^(−d/4) (h₃ + h₁) + √(1 − 2^(1−d/2)) h₂,   A = 0, A′ = 2^(−d/2), B′ = 2
        d < 2:  φ = √a h₁ + √(1 − a) h₇,   a = (7 − 6a)^(−d/2)

    with the normalised Hermite polynomials h_k, so that α = −ln A′ / ln B′ = d/2. Units are to have variance 1, as they
    do with weights of variance 1 over their number and inputs of norm √columns. For d = 1, 2, 4 and 8 these are the
    ones that the paper's code uses; the form for other d < 2 was made here.

    Args:
        dimension: d, intrinsic, from 0.5 on: 2 for points on a sphere in three dimensions.

    Raises:
        ValueError: another dimension.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> [round(float(x), 4) for x in activation(optimal(4)).sphere()]
        [0.0, 0.25, 2.0]

    Reference: arXiv 2204.14126.
    """
    if not 0.5 <= dimension < math.inf:
        raise ValueError(f"got dimension {dimension}; expected a number from 0.5 on")
    weights = _weights(dimension)

    def function(x: Tensor) -> Tensor:
        terms = zip(weights, hermite_polynomials(x, len(weights)))
        return sum((w * h for w, h in terms if w), torch.zeros_like(x))

    function.__name__ = f"optimal:{dimension:g}"
    return function


def _weights(d: float) -> list[float]:
    """Of h₀, h₁ and so on."""
    if d >= 2:
        return [0.0, 2 ** (-d / 4), math.sqrt(1 - 2 ** (1 - d / 2)), 2 ** (-d / 4)]
    # a = 1 is a root as well; between the two a (7 − 6a)^(d/2) is largest.
    largest = _HIGH / ((_HIGH - 1) * (1 + d / 2))
    a = brentq(lambda a: a * (_HIGH - (_HIGH - 1) * a) ** (d / 2) - 1, 1e-12, largest, xtol=1e-15)
    return [0.0, math.sqrt(a), *[0.0] * (_HIGH - 2), math.sqrt(1 - a)]


def sine_frequency(dimension: float) -> float:
    """The frequency ω at which sin ωx does the same, `activation(f"sin:{ω}")`, units of variance 1.

        κ(ρ) = sinh(aρ) / sinh a,   a = ω²,   a / sinh a = (a coth a)^(−d/2)

    Args:
        dimension: d, above 1: sines go no lower.

    Raises:
        ValueError: another dimension.

    Example:
        >>> [round(sine_frequency(d) ** 2, 3) for d in (2, 4, 8)]
        [2.676, 6.135, 13.826]

    Reference: arXiv 2204.14126.
    """

    def excess(a: float) -> float:
        # ln sinh a without overflow.
        logs = a + math.log(-math.expm1(-2 * a)) - math.log(2)
        return logs - math.log(a) - dimension / 2 * math.log(a / math.tanh(a))

    if not 1 < dimension < math.inf or excess(1e-3) >= 0:
        raise ValueError(f"got dimension {dimension}; expected a number above 1, where a sine can be optimal")
    return math.sqrt(brentq(excess, 1e-3, 100.0 + dimension**2, xtol=1e-14))
