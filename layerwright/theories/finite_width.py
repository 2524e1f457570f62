"""How far a network of one width and depth is from the infinitely wide one, from draw to draw of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.activation import Activation
from layerwright.maths.activation import activation as activation_of
from layerwright.maths.criticality import Critical, critical
from layerwright.maths.width_fluctuations import (
    Drawn,
    best_depth_over_width,
    critical_block,
    draw,
    expected,
    growth,
)

# Spreads above this are not drawn: first order in 1/width says nothing there, nor do a few thousand networks.
_DRAWN = 4.0


@theory(paper="2106.10165")
def finite_width(
    *,
    activation: str | Callable[..., torch.Tensor] = "relu",
    width: int = 256,
    depth: int = 32,
    skip: float = 0.0,
    inner: float | None = None,
    outputs: int = 10,
    nets: int = 2000,
    seed: int = 0,
) -> Prediction:
    """How much critical networks of one width differ from draw to draw, by formula and by drawing them.

    Of a layer of n units, z ← γz + W φ(z) + b, or z ← γz + W φ(W₁ z) + b with `inner`, K = E z² is what infinite width
    keeps, and the covariance V/n of two units' squares is what a width adds. It grows by ν/n a layer,

        V/(nK²) = ν L/n,   ν = 2 (1 − γ⁴) + C_W²/K² Σ_{k≠0,2} a_k² (1 + γᵏ)/(1 − γᵏ),   a_k = E φ(√K z)² h_k(z)

    and by a third of that where K* = 0, so that depth over width decides how far infinite width holds. The paper's
    formula has no (1 + γᵏ)/(1 − γᵏ): it takes a unit's sign to be new in every layer, which it is without a residual
    stream only; with one, ν of relu is up to several times larger (`growth_by_memory`, derived here).

    Assumes:
        dense layers at initialisation with independent Gaussian weights, at the critical variances of the block, one
        input; formulas to first order in 1/width. What is drawn is exact but for the number of networks.

    Args:
        activation: a name as in `maths/activation.py` (relu, tanh, gelu, silu, leaky_relu:0.1, …), or in Python any
            elementwise function; it needs a critical point.
        width: n.
        depth: L.
        skip: γ, from 0 (no residual stream) to below 1; C_W is 1 − γ² of that without a stream.
        inner: for a block with a linear map of its own before φ, that one's width over n.
        outputs: of the network, for `best_depth_over_width`.
        nets: networks to draw.
        seed: of the draw.

    Returns:
        the variances, ν by formula and as drawn with its standard error, beside the formula over the same layers; the
        spread V/(nK²) at this depth; the depth where the formula's reaches 1, and the best depth over width,
        4 / ((20 + 3 outputs) ν), where half of the outputs say most about the other half (derived here to third order
        in νL/n).

    Raises:
        UserError: an unknown activation or one without a critical point, or sizes that cannot be used.

    Example:
        >>> found = finite_width(activation="relu", skip=0.9**0.5, width=32, depth=4, nets=40)
        >>> round(found["growth"], 2), round(found["growth_without_memory"], 2)
        (1.4, 0.41)

    Reference: arXiv 2106.10165.
    """
    _check(width, depth, skip, inner, outputs, nets)
    phi, at = _critical(activation)
    block = critical_block(at, skip, inner)
    start = at.variance if at.variance > 0 else 1.0
    nu = growth(phi, block, at)
    _, excess = expected(phi, block, start, depth)
    drawn = draw(phi, block, start, width, depth, nets, seed)
    first, last = drawn.layers
    near = float(excess[last] - excess[first]) / (last - first)
    ratio = best_depth_over_width(nu.total, outputs)
    table = quantities(
        [
            ("critical_variance", at.variance, "1", "K*"),
            ("weight_variance", block.weight, "1", "C_W of the block, times 1/inputs"),
            ("bias_variance", block.bias, "1", "C_b of the block"),
            ("growth", nu.total, "1/layer", "ν by formula, far up"),
            ("growth_by_memory", nu.memory, "1/layer", "of it, because a stream remembers its units' signs and sizes"),
            ("growth_without_memory", nu.total - nu.memory, "1/layer", "ν as in the paper"),
            ("drawn_growth", drawn.growth, "1/layer", f"ν of the networks drawn, layers {first} to {last}"),
            ("drawn_growth_error", drawn.error, "1/layer", "its standard error"),
            ("growth_in_these_layers", near, "1/layer", "ν by formula in the same layers"),
            ("spread", float(torch.expm1(excess[-1] / width)), "1", f"V/(nK²) after {depth} layers, by formula"),
            ("drawn_spread", float(drawn.excess[-1]) / width, "1", "the same of the networks drawn"),
            ("depth_over_width", depth / width, "1", "L/n"),
            ("best_depth_over_width", ratio, "1", f"for {outputs} outputs"),
            ("best_depth", ratio * width, "layer", f"for width {width}"),
            ("depth_of_large_fluctuations", width / nu.total, "layer", "n/ν: the spread is as large as the mean"),
        ]
    )
    lines = {"networks drawn": drawn.excess / width, "(formula)": torch.expm1(excess / width)}
    if nu.memory > 0.01 * nu.total:
        lines["(without memory)"] = torch.expm1((nu.total - nu.memory) * torch.arange(depth + 1) / width)
    return Prediction(table, notes=_notes(phi, nu.total * depth / width, drawn, near), picture=_picture(lines))


def _check(width: int, depth: int, skip: float, inner: float | None, outputs: int, nets: int) -> None:
    for name, number, least in (("width", width, 2), ("depth", depth, 2), ("outputs", outputs, 1), ("nets", nets, 40)):
        if not (isinstance(number, int) and number >= least):
            raise UserError(f"got {name}={number}; expected a whole number from {least} on")
    if not 0 <= skip < 1:
        raise UserError(f"got skip={skip}; expected γ from 0 to below 1: at 1 nothing is left for the branch")
    if inner is not None and not (0 < inner < math.inf and round(inner * width) >= 1):
        raise UserError(f"got inner={inner}; expected a width over that of the stream, of at least one unit")


def _critical(given: str | Callable[..., torch.Tensor]) -> tuple[Activation, Critical]:
    with in_one_line(ValueError):
        phi = activation_of(given)
        at = critical(phi)
    if at is None:
        raise UserError(
            f"{phi.name} has no critical point: depth makes its signal or its gradient die or explode long before "
            "fluctuations matter; `criticality` with weight_variance says how fast"
        )
    return phi, at


def _notes(phi: Activation, spread: float, drawn: Drawn, near: float) -> list[str]:
    notes = [f"class: {phi.universality.name}"]
    if spread > 1:
        notes.append(
            f"νL/n = {spread:.2g}: fluctuations are as large as their mean, and a network of this shape is far from "
            "what infinite width says; spreads above 1 are underestimated by the networks drawn"
        )
    if abs(drawn.growth - near) > 3 * drawn.error:
        notes.append(
            "formula and networks drawn differ by more than three standard errors: the width is too small for first "
            "order in 1/width, or the networks are too few"
        )
    return notes


def _picture(lines: Mapping[str, torch.Tensor]) -> Picture:
    series = {
        name: [(float(layer), float(x)) for layer, x in enumerate(line) if x < _DRAWN] for name, line in lines.items()
    }
    return Picture(series, across="layer", up="spread V/(nK²) (1)")
