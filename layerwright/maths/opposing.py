"""Groups of examples that a training step pulls in opposite directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class OpposingSignals(NamedTuple):
    """The two groups of a step, and the numbers that say whether they oppose one another.

    Attributes:
        rising: numbers of the examples whose loss rose most, worst first.
        falling: of those whose loss fell most.
        flips: share of the examples of both groups whose loss moves the other way at the next step; NaN without one.
        flips_of_all: the same of all examples, to compare with.
        cosine: between the groups' mean gradients; -1 where they pull in opposite directions.
        norms: length of the mean gradient of the rising and of the falling group.
        projections: cosine of each mean gradient with the top eigenvector of the Hessian, the rising one's made
            positive; NaN without a vector.
    """

    rising: Tensor
    falling: Tensor
    flips: float
    flips_of_all: float
    cosine: float
    norms: tuple[float, float]
    projections: tuple[float, float]


def opposing_signals(
    losses: Tensor, gradient: Callable[[Tensor], Tensor], top_vector: Tensor | None = None, *, share: float = 0.01
) -> OpposingSignals:
    """The examples whose loss a training step changes most, up and down, and how their gradients oppose one another.

        Δℓ_i = ℓ_i(t + 1) − ℓ_i(t),   g_± = mean gradient over the `share` of examples with the largest ±Δℓ
        cosine = ⟨g_+, g_−⟩ / (‖g_+‖ ‖g_−‖),   projection = ⟨g, v⟩ / ‖g‖

    A random direction among P has a projection of about 1/√P; the share of all examples that flip is the one to hold
    that of the groups against.

    Args:
        losses: loss of every example at the weights before the step, after it and, where known, after the next one,
            `[2 or 3, N]`.
        gradient: the mean gradient `[P]` of the examples of these numbers, at the weights before the step.
        top_vector: v, `[P]`, eigenvector of the largest eigenvalue of the Hessian there.
        share: of the examples that each group holds, at least one.

    Raises:
        ValueError: fewer than two steps or two examples, or losses that are not finite.

    Example:
        >>> steps = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.5, 1.0], [1.0, 2.0, 1.0]])
        >>> pull = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> found = opposing_signals(steps, lambda rows: pull[rows].mean(0), torch.tensor([-1.0, 0.0]))
        >>> found.rising.tolist(), found.falling.tolist(), found.flips, found.cosine, found.norms, found.projections
        ([0], [1], 1.0, -1.0, (2.0, 1.0), (1.0, -1.0))

    Reference: arXiv 2311.04163, which gives no definition in numbers; these are ours.
    """
    if losses.ndim != 2 or len(losses) not in (2, 3) or losses.shape[1] < 2:
        raise ValueError(
            f"got losses of shape {tuple(losses.shape)}; expected [2 or 3 steps, examples], at least two examples; "
            "stack the losses before the step, after it and after the next"
        )
    if not losses.isfinite().all():
        raise ValueError("got losses with NaN or infinite numbers; expected finite ones; leave those examples out")
    change = losses.double().diff(dim=0)
    count = min(max(1, round(share * losses.shape[1])), losses.shape[1] // 2)
    ranked = change[0].argsort(descending=True, stable=True)
    rising, falling = ranked[:count], ranked[-count:].flip(0)
    up, down = (gradient(group).double().flatten() for group in (rising, falling))
    flips = flips_of_all = float("nan")
    if len(change) == 2:
        flipped = change[0] * change[1] < 0
        flips, flips_of_all = (
            float(flipped[torch.cat([rising, falling])].double().mean()),
            float(flipped.double().mean()),
        )
    along = (float("nan"), float("nan"))
    if top_vector is not None:
        first, second = _cosine(up, top_vector.double().to(up)), _cosine(down, top_vector.double().to(up))
        along = (first, second) if first >= 0 else (-first, -second)
    return OpposingSignals(
        rising, falling, flips, flips_of_all, _cosine(up, down), (float(up.norm()), float(down.norm())), along
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    """NaN where either is zero."""
    return float((a @ b) / (a.norm() * b.norm()))
