"""At which variance of its weights a deep network of some activation keeps its signal."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.activation import Activation
from layerwright.maths.activation import activation as activation_of
from layerwright.maths.criticality import Critical, critical, fluctuation, signal
from layerwright.maths.width_fluctuations import best_depth_over_width

# Weights this much above and below are drawn beside.
_OFF = 0.1


@theory(paper="2106.10165")
def criticality(
    *,
    activation: str | Callable[..., torch.Tensor] = "gelu",
    weight_variance: float | None = None,
    bias_variance: float | None = None,
    start: float = 1.0,
    depth: int = 50,
    outputs: int = 10,
) -> Prediction:
    """Where a deep network keeps its signal and its gradient, and how fast it loses them elsewhere.

    With K the variance of a pre-activation, weights of variance C_W over the number of inputs, biases of variance C_b,

        K ← C_b + C_W E φ(√K z)²,   χ∥ = C_W d/dK E φ(√K z)²,   χ⊥ = C_W E φ′(√K z)²

    the network is critical where χ∥ = χ⊥ = 1 at a fixed point K*: any other χ makes a signal, or a gradient, grow or
    shrink by e every −1/ln χ layers (`depth_scale`). Near a critical point the fluctuations of a network of width n
    grow by ν/n a layer (`fluctuation_growth`), so that depth over width, and not depth, is what limits it.

    Assumes:
        dense layers without residual branches or norms, at initialisation, with independent weights; width to infinity,
        the fluctuations to first order in 1/width.

    Args:
        activation: a name as in `maths/activation.py` (relu, tanh, gelu, silu, leaky_relu:0.1, …), or in Python any
            elementwise function.
        weight_variance: C_W; left out, the critical one.
        bias_variance: C_b; left out, the critical one, or 0 where C_W is given.
        start: K of the first layer.
        depth: layers to go through for the picture and for `variance_at_depth`.
        outputs: of the network, for `best_depth_over_width`.

    Returns:
        K*, C_W and C_b of the critical point; for the variances given, the fixed point, both χ and depth scales there;
        ν; and the depth over width that the paper calls optimal (`finite_width` says more).

    Raises:
        UserError: an unknown activation, one without a critical point where no C_W is given, or variances, a depth or a
            number of outputs that cannot be used.

    Example:
        >>> found = criticality(activation="gelu")
        >>> [round(found[name], 4) for name in ("critical_variance", "weight_variance", "bias_variance")]
        [3.5616, 1.9831, 0.1729]

    Reference: arXiv 2106.10165.
    """
    phi = _activation(activation)
    _check(weight_variance, bias_variance, start, depth, outputs)
    at = critical(phi)
    if at is None and weight_variance is None:
        raise UserError(
            f"{phi.name} has no critical point: depth makes its signal or its gradient die or explode whatever the "
            "variances; give weight_variance, and bias_variance, to see how fast"
        )
    if weight_variance is None:
        assert at is not None
        weight_variance, bias_variance = at.weight, at.bias if bias_variance is None else bias_variance
    bias = bias_variance or 0.0
    found = signal(phi, weight_variance, bias, start, depth)
    nu = math.nan if at is None else fluctuation(phi, at)
    rows = [
        ("critical_variance", math.nan if at is None else at.variance, "1", "K*"),
        ("weight_variance", weight_variance, "1", "C_W, times 1/inputs, of what follows"),
        ("bias_variance", bias, "1", "C_b of what follows"),
        *_at_fixed_point(phi, weight_variance, bias, at, float(found.variance[0])),
        ("variance_at_depth", float(found.variance[-1]), "1", f"K after {depth} layers, from {start:g}"),
        ("fluctuation_growth", nu, "1/layer", "ν at the critical point, times 1/width"),
        ("best_depth_over_width", best_depth_over_width(nu, outputs), "1", f"for {outputs} outputs"),
    ]
    notes = [f"class: {phi.universality.name}"]
    if at is not None and math.isnan(at.variance):
        notes.append("every variance is a fixed point at criticality: K stays what it is")
    return Prediction(quantities(rows), notes=notes, picture=_picture(phi, weight_variance, bias, found.variance))


def _activation(given: str | Callable[..., torch.Tensor]) -> Activation:
    with in_one_line(ValueError):
        return activation_of(given)


def _check(weight: float | None, bias: float | None, start: float, depth: int, outputs: int) -> None:
    if not all(x is None or 0 <= x < math.inf for x in (weight, bias)) or weight == 0 or not 0 < start < math.inf:
        raise UserError(
            f"got weight_variance={weight}, bias_variance={bias}, start={start}; expected numbers above 0, and a bias "
            "variance from 0 on"
        )
    if not all(isinstance(n, int) and n >= 1 for n in (depth, outputs)):
        raise UserError(f"got depth={depth}, outputs={outputs}; expected whole numbers from 1 on")


def _at_fixed_point(
    phi: Activation, weight: float, bias: float, at: Critical | None, start: float
) -> list[tuple[str, float | str, str, str]]:
    """The fixed point that a signal goes to, and what both χ are there."""
    if at is not None and (weight, bias) == (at.weight, at.bias):
        fixed, parallel, perpendicular = at.variance, 1.0, 1.0
    else:
        fixed, parallel, perpendicular = _settled(phi, weight, bias, start)
    return [
        ("fixed_point", fixed, "1", "where K goes to"),
        ("chi_parallel", parallel, "1", "χ∥ there: what a layer makes of a small change of K"),
        ("chi_perpendicular", perpendicular, "1", "χ⊥ there: what a layer makes of a gradient, and of a difference"),
        ("depth_scale_parallel", _scale(parallel), "layer", "in which a change of K shrinks by e (below 0: grows)"),
        ("depth_scale_perpendicular", _scale(perpendicular), "layer", "in which a gradient shrinks by e"),
    ]


def _settled(phi: Activation, weight: float, bias: float, start: float) -> tuple[float, float, float]:
    """K, χ∥ and χ⊥ after many layers: NaN where K explodes, 0 and the limits where it dies."""
    k = start
    for _ in range(2000):
        before, k = k, bias + weight * float(phi.diagonal(k))
        if not k < 1e12:
            return math.nan, math.nan, math.nan
        if abs(k - before) <= 1e-14 * k or k < 1e-12:
            break
    point = max(k, 1e-12)
    parallel, perpendicular = (weight * float(f(point)) for f in (phi.diagonal_slope, phi.diagonal_derivative))
    return k if k > 1e-12 else 0.0, parallel, perpendicular


def _scale(chi: float) -> float:
    return math.inf if chi == 1 else -1 / math.log(chi) if chi > 0 else 0.0


def _picture(phi: Activation, weight: float, bias: float, here: torch.Tensor) -> Picture | None:
    more, less = (
        signal(phi, factor * weight, bias, float(here[0]), len(here) - 1).variance for factor in (1 + _OFF, 1 - _OFF)
    )
    lines = {f"C_W = {weight:.4g}": here, f"{_OFF:.0%} more": more, f"{_OFF:.0%} less": less}
    series = {
        name: [(float(layer), float(x)) for layer, x in enumerate(k) if 0 < x < math.inf] for name, k in lines.items()
    }
    return Picture(series, across="layer", up="variance K (1)", log=True) if all(series.values()) else None
