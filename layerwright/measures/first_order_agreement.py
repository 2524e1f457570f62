"""Whether the cheap prediction ranks the blocks as the measured skips do."""

from __future__ import annotations

import numpy as np

from layerwright.core.registry import measure
from layerwright.core.table import Field


@measure(unit={"rank_correlation": "1"}, range=(-1, 1), tier="standard", paper="2505.13898")
def first_order_agreement(first_order_skip: Field, skip_output: Field) -> dict[str, float]:
    """Rank correlation between the predicted and the measured rise of the loss when a block is skipped.

    Over the blocks,

        Spearman's ρ ( first_order_skip, loss_increase )

    Near 1 one backward pass ranks the blocks as well as L skips do; otherwise trust the skips.

    Args:
        first_order_skip: the prediction.
        skip_output: the measurement.

    Returns:
        in [-1, 1]; NaN where either is constant or undefined.

    Example:
        >>> predicted = Field(("block",), [(0,), (1,), (2,)], np.array([3.0, 1.0, 2.0]), np.zeros(3))
        >>> keys = [(s, "loss_increase") for s in range(3)]
        >>> measured = Field(("source", "quantity"), keys, np.array([9.0, 4.0, 5.0]), np.zeros(3))
        >>> round(first_order_agreement(predicted, measured)["rank_correlation"], 6)
        1.0

    Reference: arXiv 2505.13898 for the skips.
    """
    predicted, measured = first_order_skip.array(), skip_output.array(quantity="loss_increase")
    if len(predicted) != len(measured) or len(predicted) < 2:
        return {"rank_correlation": float("nan")}
    known = np.isfinite(predicted) & np.isfinite(measured)
    if known.sum() < 2 or np.ptp(predicted[known]) == 0 or np.ptp(measured[known]) == 0:
        return {"rank_correlation": float("nan")}
    from scipy.stats import spearmanr  # takes half a second to import, in every worker

    return {"rank_correlation": float(spearmanr(predicted[known], measured[known]).statistic)}
