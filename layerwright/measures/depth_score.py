"""Where in the tower the blocks sit whose work matters later."""

from __future__ import annotations

import numpy as np

from layerwright.core.registry import measure
from layerwright.core.table import Field


@measure(
    unit={"later": "block", "future": "block", "output": "block"}, range=(1, None), tier="standard", paper="2505.13898"
)
def depth_score(skip_effect: Field, skip_output: Field) -> dict[str, float]:
    """Centre of gravity of the blocks whose work matters: the mean block number weighted by the effect of a skip.

    Counting blocks from 1, with e_l the effect of skipping block l,

        d = Σ_l l · e_l / Σ_l e_l

    `later`, `future`: e_l is the mean over later blocks of the maximal skip effect; `output`: e_l is the maximal change
    of the output distribution. Small: the work is done early; (L + 1)/2: spread evenly. A resampled maximum is never
    above the measured one, so that the intervals lean to one side.

    Args:
        skip_effect: the effect of skipping a block on each later one.
        skip_output: the effect on the output.

    Returns:
        in blocks, from 1 to L; `future` only for causal models.

    Example:
        >>> keys = [(0, 1, "later"), (0, 2, "later"), (1, 2, "later")]
        >>> effect = Field(("source", "block", "quantity"), keys, np.zeros(3), np.array([2.0, 4.0, 1.0]))
        >>> shift = Field(("source", "quantity"), [(s, "probability_shift") for s in range(3)], np.ones(3), np.ones(3))
        >>> {name: float(d) for name, d in depth_score(effect, shift).items()}
        {'later': 1.25, 'output': 2.0}

    Reference: arXiv 2505.13898.
    """
    scores = {}
    for kind in ("later", "future"):
        if skip_effect.has(quantity=kind):
            scores[kind] = _centre(_mean_over_later(skip_effect.array("max", quantity=kind)))
    if skip_output.has(quantity="probability_shift"):
        scores["output"] = _centre(skip_output.array("max", quantity="probability_shift"))
    return scores


def _mean_over_later(effect: np.ndarray) -> np.ndarray:
    known = np.isfinite(effect)
    return np.where(known, effect, 0.0).sum(1) / np.maximum(known.sum(1), 1)


def _centre(effect: np.ndarray) -> float:
    total = effect.sum()
    return float((np.arange(1, len(effect) + 1) * effect).sum() / total) if total > 0 else float("nan")
