"""The words of a tower: layers that have an infinite width and a finite one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from layerwright.core.errors import UserError, in_one_line
from layerwright.maths.activation import Activation
from layerwright.maths.activation import activation as activation_of

__all__ = ["Act", "Attention", "Conv", "Dense", "Dropout", "Flatten", "Norm", "Pool", "Residual", "Word"]

PADDINGS = ("same", "valid", "circular")
SCALINGS = ("1/d", "1/sqrt(d)")
FUNCTIONS = ("softmax", "linear")


@dataclass(frozen=True)
class Dense:
    """A dense layer (in sequences, of each token), weights of variance C_W over its inputs, biases of variance C_b.

    Attributes:
        weight_variance: C_W, above 0.
        bias_variance: C_b, from 0 on.
    """

    weight_variance: float = 1.0
    bias_variance: float = 0.0

    def __post_init__(self) -> None:
        """Check the variances."""
        _check_variances(self.weight_variance, self.bias_variance)


@dataclass(frozen=True)
class Conv:
    """A convolution of images, its filters square and moved by one pixel at a time.

    Attributes:
        size: s, the sides of a filter in pixels.
        weight_variance: C_W over inputs and s², above 0.
        bias_variance: C_b, from 0 on.
        padding: "same" (zeros around the image), "valid" (none, so that images shrink) or "circular" (the image goes
            around; then of every convolution of the tower).
    """

    size: int
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    padding: str = "same"

    def __post_init__(self) -> None:
        """Check size, variances and padding."""
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise UserError(f"got size={self.size}; expected a whole number of pixels from 1 on")
        if self.padding not in PADDINGS:
            raise UserError(f"got padding={self.padding!r}; expected one of {', '.join(PADDINGS)}")
        _check_variances(self.weight_variance, self.bias_variance)


@dataclass(frozen=True)
class Flatten:
    """Units of all positions beside each other, for a dense layer after them."""


@dataclass(frozen=True)
class Pool:
    """Units averaged over all positions, for a dense layer after them."""


@dataclass(frozen=True)
class Attention:
    """Multi-head attention over all tokens of a sequence; in the limit, heads are many, and d, the width of each.

    Attributes:
        weight_variance: of values times that of the output, above 0.
        bias_variance: of the output's biases, from 0 on.
        score_scale: s, the deviation of queries times that of keys, above 0.
        scaling: of the scores QKᵀ: "1/d", where queries and keys are one, or "1/sqrt(d)".
        function: of the scores: "softmax" or "linear" (none). The kernels of softmax over √d are averages over Gaussian
            scores, which `Tower.drawn` draws; all others have closed forms.
    """

    weight_variance: float = 1.0
    bias_variance: float = 0.0
    score_scale: float = 1.0
    scaling: str = "1/d"
    function: str = "softmax"

    def __post_init__(self) -> None:
        """Check numbers and names."""
        _check_variances(self.weight_variance, self.bias_variance)
        if not _number(self.score_scale) > 0:
            raise UserError(f"got score_scale={self.score_scale}; expected a number above 0")
        for name, given, known in (("scaling", self.scaling, SCALINGS), ("function", self.function, FUNCTIONS)):
            if given not in known:
                raise UserError(f"got {name}={given!r}; expected one of {', '.join(known)}")

    @property
    def drawn(self) -> bool:
        """Whether its kernels are averages over draws."""
        return self.scaling == "1/sqrt(d)" and self.function == "softmax"


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
        with in_one_line(ValueError):
            phi = activation_of(self.activation)
            phi.diagonal_derivative(1.0)
        object.__setattr__(self, "activation", phi)


@dataclass(frozen=True)
class Norm:
    """RMSNorm without weights (in the limit LayerNorm as well, after dense layers); of each position by itself.

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
        words: the branch; its last word is `Dense`, `Conv` of images, or `Attention` of sequences.
        scale: r.
    """

    words: Sequence[Word]
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Keep the words as they are now."""
        if not isinstance(self.words, Sequence):
            raise UserError(f"got {type(self.words).__name__} as a branch; expected a list of words, as in [Dense()]")
        object.__setattr__(self, "words", tuple(self.words))
        if math.isnan(_number(self.scale)):
            raise UserError(f"got scale={self.scale}; expected a finite number")


Word = Dense | Conv | Attention | Act | Norm | Dropout | Residual | Flatten | Pool


def _check_variances(weight: float, bias: float) -> None:
    if not (_number(weight) > 0 and _number(bias) >= 0):
        raise UserError(
            f"got weight_variance={weight!r}, bias_variance={bias!r}; expected a number above 0, and one from 0 on"
        )


def _number(given: Any) -> float:
    """NaN for what is no finite number, which passes no comparison."""
    fits = not isinstance(given, bool) and isinstance(given, Real) and math.isfinite(given)
    return float(given) if fits else math.nan
