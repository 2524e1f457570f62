"""Scale the outputs of a pre-normalised tower's norms down with depth."""

from __future__ import annotations

import pandas as pd

from layerwright.core.plan import Plan
from layerwright.core.planner import planner


@planner(paper="2502.05795")
def layernorm_scaling(stream_scale: pd.DataFrame) -> Plan:
    """Multiply the output of both norms of block l by 1/√(l+1), so that the stream grows less with depth.

    With l counted from 0,

        norm_l(h) → norm_l(h) / √(l + 1)

    in each block, not at the final norm, folded into the norms' own scales. A trained model is another one after it:
    the fold is for the start of training, or for training on. It is not to be combined with an initialisation that is
    scaled by depth.

    Args:
        stream_scale: the measure: σ of the stream at each depth.

    Returns:
        a plan with one `fold` step.

    Example:
        >>> layernorm_scaling(pd.DataFrame({"point": [0, 1, 2], "value": [1.0, 2.0, 4.0]})).steps
        ({'fold': {'layernorm_scaling': True}},)

    Reference: arXiv 2502.05795.
    """
    scale = stream_scale.sort_values("point")["value"].astype(float).to_numpy()
    depth = len(scale) - 1
    growth = scale[-1] / scale[0]
    kind = "as √l or slower, so that little is to be won" if growth <= (depth + 1) ** 0.5 else "faster than √l"
    why = (
        f"The stream's scale goes from {scale[0]:.3g} to {scale[-1]:.3g} over {depth} blocks ({growth:.3g} times), "
        f"{kind}; the last block's norms give 1/√{depth} = {depth**-0.5:.2f} of what they gave. The model has "
        "to be trained on."
    )
    return Plan(({"fold": {"layernorm_scaling": True}},), why=why)
