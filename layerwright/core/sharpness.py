"""How sharp the loss is where the weights stand: what one step up its gradient adds to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from layerwright.core.curvature import WHOLE, Loss
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs
from layerwright.core.stack import Stack

INDEX = ("block", "quantity")
RADIUS = 0.05  # of arXiv 2010.01412


def loss_sharpness(
    stack: Stack, batches: Iterable[Inputs], rho: float = RADIUS, *, prefix: int = 0
) -> dict[tuple[str, str], float]:
    """How much the loss rises after one step of length ρ up its gradient, the worst direction nearby to first order.

    With w the weights of one block, or of the whole model, and g the derivative of the mean loss L by them,

        rise = L(w + ρ g/‖g‖) − L(w),   first order = ρ ‖g‖

    The length is Euclidean and absolute: 0.05 in the paper. Far from a minimum the rise is mostly its first order, the
    length of the gradient; what is left is ρ²/2 times the curvature along it. Weights count whether they are frozen or
    not, as in `core.curvature`, and are not written to: the model is called with others in their place. Costs a
    forward and a backward pass, then a forward pass for each distinct block and one for the whole model; memory holds
    the gradient in float64 and a second copy of the weights.

    Args:
        stack: the model and its tower.
        batches: the data.
        rho: ρ, above 0.
        prefix: leading tokens of each sequence that have no loss.

    Returns:
        by block (the place where it first runs, or `model`) and quantity: `rise` and `first_order`, and of the model
        its `loss`, all nat/token; NaN where the gradient is.

    Raises:
        UserError: the radius is not above 0, or the data or the model allow no loss.

    Reference: arXiv 2010.01412.
    """
    if not (rho > 0 and math.isfinite(rho)):
        raise UserError(f"got rho {rho}; expected a length above 0, such as {RADIUS}")
    loss = Loss(stack, batches, prefix)
    sizes = [w.numel() for w in loss.weights.values()]
    gradient = dict(zip(loss.weights, loss.gradient().split(sizes)))
    here = loss.value()
    found = {(WHOLE, "loss"): here}
    groups = {WHOLE: list(loss.weights)}
    groups |= {str(stack.order.index(b)): loss.group(b) for b in range(len(stack.blocks))}
    for group, names in groups.items():
        weights, by = ({name: x[name] for name in names} for x in (loss.weights, gradient))
        found[group, "rise"] = rise(loss.value, weights, by, rho, here)
        found[group, "first_order"] = rho * length(by)
    return found


def rise(
    value: Callable[[dict[str, Tensor]], float],
    weights: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    rho: float,
    here: float,
) -> float:
    """L(w + ρ g/‖g‖) − L(w); 0 where g is 0.

    Args:
        value: L, of weights by name.
        weights: w.
        gradient: g, by the same names, flat or not.
        rho: ρ.
        here: L(w).

    Example:
        >>> import torch
        >>> w = {"w": torch.tensor([3.0, 4.0])}  # L = ‖w‖²/2, g = w: ρ ‖w‖ + ρ²/2
        >>> rise(lambda x: float(x["w"].square().sum() / 2), w, w, 0.5, 12.5)
        2.625
    """
    scale = rho / norm if (norm := length(gradient)) else 0.0
    moved = {name: w + (scale * gradient[name]).view_as(w).to(w) for name, w in weights.items()}
    return value(moved) - here


def length(gradient: Mapping[str, Tensor]) -> float:
    """‖g‖ over all pieces together.

    Example:
        >>> import torch
        >>> length({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
        5.0
    """
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
