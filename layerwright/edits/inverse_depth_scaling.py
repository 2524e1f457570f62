"""Scale what each block adds down by the depth of the tower."""

from __future__ import annotations

import pandas as pd

from layerwright.core.plan import Plan
from layerwright.core.planner import planner
from layerwright.core.steps.choice import number


@planner(paper="2510.03470")
def inverse_depth_scaling(stream_scale: pd.DataFrame, *, power: float = 1.0) -> Plan:
    """Multiply what each block adds to the stream by 1/L, so that its paths no longer multiply with depth.

    A residual tower is the sum over all subsets of its blocks,

        ∏_l (1 + λ·f_l) = 1 + λ·Σ f_l + λ²·Σ_{i<j} f_j'·f_i + …,   λ = 1 / L^power

    with C(L, k) paths of order k: where each block adds a share c of the stream, it grows to (1 + λ·c)^L, at λ = 1
    exponentially, at λ = 1/L to less than e^c. `power` 0.5 keeps the blocks' work visible where their directions are
    unrelated. A trained model is another one after it: the fold is for the start of training, or for training on, and
    scaling by 1/L can cost accuracy.

    Args:
        stream_scale: the measure: σ of the stream at each depth.
        power: 1 for λ = 1/L, 0.5 for 1/√L.

    Returns:
        a plan with one `fold` step, the same factor for every block.

    Raises:
        UserError: the power is not positive.

    Example:
        >>> plan = inverse_depth_scaling(pd.DataFrame({"point": [0, 1, 2], "value": [1.0, 2.0, 4.0]}))
        >>> plan.steps
        ({'fold': {'scale': [0.5, 0.5]}},)
        >>> plan.why.split(": ")[1]  # each adds as much as there was: (1 + 1)² = 4, and (1 + ½)² = 2.25
        'scaled by 0.5 it would grow 2.25 times. The model has to be trained on.'

    Reference: arXiv 2510.03470.
    """
    exponent = number(power, "power")
    scale = stream_scale.sort_values("point")["value"].astype(float).to_numpy()
    depth = len(scale) - 1
    factor = depth**-exponent
    growth = scale[-1] / scale[0]
    share = growth ** (1 / depth) - 1
    why = (
        f"The stream grows {growth:.3g} times over {depth} blocks, as if each added a share of {share:.3f}: scaled by "
        f"{factor:.3g} it would grow {(1 + factor * share) ** depth:.3g} times. The model has to be trained on."
    )
    return Plan(({"fold": {"scale": [factor] * depth}},), why=why)
