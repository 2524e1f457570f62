"""The words of a tower: layers that have an infinite width and a finite one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layerwright.core.errors import UserError
from layerwright.maths.activation import Activation
from layerwright.maths.activation import activation as activation_of

__all__ = ["Act", "Dense", "Dropout", "Norm", "Residual", "Word"]


@dataclass(frozen=True)
class Dense:
    """A dense layer, weights of variance C_W over its inputs, biases of variance C_b.

    Attributes:
        weight_variance: C_W, above 0.
        bias_variance: C_b, from 0 on.
    """

    weight_variance: float = 1.0
    bias_variance: float = 0.0

    def __post_init__(self) -> None:
        """Check the variances."""
        if not (_number(self.weight_variance) > 0 and _number(self.bias_variance) >= 0):
            raise UserError(
                f"got weight_variance={self.weight_variance}, bias_variance={self.bias_variance}; expected a number "
                "above 0, and one from 0 on"
            )


@dataclass(frozen=True)
class Act:
    """An activation, after a dense layer, a residual branch or a norm.

    Attributes:
        activation: a name as in `maths/activation.py` ("relu", "leaky_relu:0.1"), or any elementwise function; a
            module with parameters computes in float64, as does then the network (`.double()`).
    """

    activation: str | Callable[..., Any] | Activation

    def __post_init__(self) -> None:
        """Know the activation, and refuse one without a tangent kernel."""
        try:
            phi = activation_of(self.activation)
            phi.diagonal_derivative(1.0)
        except ValueError as error:
            raise UserError(str(error)) from None
        object.__setattr__(self, "activation", phi)


@dataclass(frozen=True)
class Norm:
    """RMSNorm without weights (in the limit LayerNorm as well, after dense layers).

    Attributes:
        eps: ε, above 0.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Check ε."""
        if not _number(self.eps) > 0:
            raise UserError(f"got eps={self.eps}; expected a number above 0")


@dataclass(frozen=True)
class Dropout:
    """Dropout in training mode; the network has none in `eval`.

    Attributes:
        keep: the probability to keep a unit, above 0 and up to 1.
    """

    keep: float

    def __post_init__(self) -> None:
        """Check the probability."""
        if not 0 < _number(self.keep) <= 1:
            raise UserError(f"got keep={self.keep}; expected a probability above 0 and up to 1")


@dataclass(frozen=True)
class Residual:
    """x + r · branch(x).

    Attributes:
        words: the branch; its last word is `Dense`.
        scale: r.
    """

    words: Sequence[Word]
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Keep the words as they are now."""
        object.__setattr__(self, "words", tuple(self.words))
        if math.isnan(_number(self.scale)):
            raise UserError(f"got scale={self.scale}; expected a finite number")


Word = Dense | Act | Norm | Dropout | Residual


def _number(given: float) -> float:
    """NaN for what is no finite number, which passes no comparison."""
    fits = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
    return float(given) if fits else math.nan
