"""How fast the stream grows with depth."""

from __future__ import annotations

import numpy as np

from layerwright.core.registry import measure
from layerwright.core.table import Field


@measure(unit={"rate": "1/block", "ratio": "1"}, range=(None, None), paper="2502.05795")
def stream_growth(stream_scale: Field) -> dict[str, float]:
    """Growth of the stream's scale with depth: the slope of ln σ, and last over first.

    Least squares over the states l = 0 … L:

        rate = slope of ln σ_l in l,   ratio = σ_L / σ_0

    A tower whose σ grows like √l has a falling slope; one that grows exponentially keeps it.

    Args:
        stream_scale: σ_l.

    Returns:
        `rate` in 1/block and `ratio`; NaN where a state is zero or undefined.

    Example:
        >>> field = Field(("point",), [(0,), (1,), (2,)], np.array([1.0, 2.0, 4.0]), np.zeros(3))
        >>> {k: round(v, 4) for k, v in stream_growth(field).items()}
        {'rate': 0.6931, 'ratio': 4.0}

    Reference: arXiv 2502.05795.
    """
    scale = stream_scale.array()
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return {"rate": float("nan"), "ratio": float("nan")}
    slope = np.polyfit(np.arange(len(scale)), np.log(scale), 1)[0]
    return {"rate": float(slope), "ratio": float(scale[-1] / scale[0])}
