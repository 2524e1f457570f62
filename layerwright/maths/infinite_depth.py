"""What a classifier becomes that is infinitely wide and then infinitely deep.

On a sphere, and with the variance of the units kept at q, a layer maps the correlation ρ of two inputs to

    κ(ρ) = F(q, ρq, q) / F(q, q, q),   A = κ(0),   A′ = κ′(0),   B′ = κ′(1),   κ(1) = 1

and many layers are κ applied many times: three numbers decide what is left of the inputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from layerwright.maths.activation import Activation

NEAREST, MAJORITY, SLOW, SINGULAR, CONSTANT, UNCHANGED = CLASSES = (
    "nearest neighbour", "majority", "majority, slowly", "singular kernel", "constant kernel", "unchanged",
)  # fmt: skip
# A share of E φ², or a difference, that is as good as none.
NOTHING = 1e-9


class Limit(NamedTuple):
    """A class of `CLASSES` and what it is read from.

    Attributes:
        name: the class.
        at_zero: A.
        slope_at_zero: A′.
        slope_at_one: B′, infinite where the activation jumps.
        exponent: α of a singular kernel (1 − ρ)^−α, that is ‖x − y‖^−2α; NaN elsewhere.
    """

    name: str
    at_zero: float
    slope_at_zero: float
    slope_at_one: float
    exponent: float


def limit(phi: Activation, q: float = 1.0) -> Limit:
    """What regression with the kernel of infinitely many layers does with inputs whose products are not negative.

    - nearest neighbour: A = A′ = 0. Far inputs are forgotten faster than near ones, without end.
    - singular kernel: A = 0 < A′ < 1 < B′. The class of the largest Σ (1 − ρ)^−α, α = −ln A′ / ln B′, but for a factor
      that stays bounded; consistent for data of 2α dimensions, as is the Hilbert estimate of this exponent.
    - majority: A > 0, B′ > 1. All inputs are equally far from one another.
    - majority, slowly: A > 0, B′ = 1 (relu). 1 − K falls as a power of the depth and not exponentially, and T off its
      diagonal goes to a share of it (1/4 for relu) as 1/depth: that must be small beside 1 over the samples.
    - constant kernel: A > 0, B′ < 1. All inputs become one, and 1 − K goes to 0 with its shape kept: regression with a
      smooth kernel and a constant, at any depth. It is not majority vote.
    - unchanged: κ(ρ) = ρ, a linear activation.

    The fourth and the fifth are told apart here, and checked by deep kernels; the others are the paper's (recalled, and
    checked in the same way).

    Args:
        phi: φ.
        q: variance of the units.

    Raises:
        ValueError: φ is 0 at this variance.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> [limit(activation(name)).name for name in ("hermite:2", "relu", "erf")]
        ['nearest neighbour', 'majority, slowly', 'singular kernel']

    Reference: arXiv 2204.14126.
    """
    a, slope, top = (float(x) for x in phi.sphere(q))
    if not all(math.isfinite(x) for x in (a, slope)):
        raise ValueError(f"activation {phi.name!r} is 0 at variance {q:g}; expected one that gives a signal")
    a, slope = (x if x > NOTHING else 0.0 for x in (a, slope))
    name = NEAREST
    if a:
        name = CONSTANT if top < 1 - NOTHING else SLOW if top < 1 + NOTHING else MAJORITY
    elif slope > 1 - NOTHING:
        name = UNCHANGED
    elif slope:
        name = SINGULAR
    exponent = -math.log(slope) / math.log(top) if name == SINGULAR else math.nan
    return Limit(name, a, slope, top, exponent)
