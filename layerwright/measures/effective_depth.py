"""How far up the tower the computation goes, by three thresholds."""

from __future__ import annotations

import numpy as np

from layerwright.core.registry import measure
from layerwright.core.table import Field

_RATIOS = ("cosine_ratio", "kl_ratio", "overlap_ratio")


@measure(
    unit=dict.fromkeys(("cosine", "kl", "overlap"), "block") | dict.fromkeys(_RATIOS, "1"),
    range=(0, None),
    paper="2512.14064",
)  # fmt: skip
def effective_depth(
    residual_cosine: Field, logit_lens: Field, *, kl_share: float = 0.5, overlap_from: float = 0.2
) -> dict[str, float]:
    """The block at which composing features gives way to refining the answer, by three thresholds.

    Over the blocks l, with the cosine of a block's update to its input and the lens at its input,

        cosine  = last l at which the mean of three neighbouring cosines turns from negative to positive
        kl      = first l with KL < kl_share · max KL        (1/2)
        overlap = first l with top-5 overlap > overlap_from  (0.2)
        ratio   = (l + 1) / L

    The three need not agree; a threshold that is never crossed is absent rather than guessed.

    Args:
        residual_cosine: cosine of every block's update.
        logit_lens: the lens at every state.
        kl_share: the share of the largest KL below which the answer counts as formed.
        overlap_from: the top-5 overlap from which it does.

    Returns:
        blocks counted from 0, and ratios in (0, 1]; NaN where a threshold is never crossed.

    Example:
        >>> rows = [(b, "block") for b in range(4)]
        >>> cos = Field(("block", "part"), rows, np.array([-0.2, -0.2, 0.3, 0.3]), np.zeros(4))
        >>> keys = [(p, q) for q in ("kl", "top5_overlap") for p in range(5)]
        >>> lens = Field(("point", "quantity"), keys, np.array([4, 3, 1, 0.5, 0, 0, 0, 0, 0.4, 1.0]), np.zeros(10))
        >>> {name: float(d) for name, d in effective_depth(cos, lens).items()}
        {'cosine': 2.0, 'kl': 2.0, 'overlap': 3.0, 'cosine_ratio': 0.75, 'kl_ratio': 0.75, 'overlap_ratio': 1.0}

    Reference: arXiv 2512.14064.
    """
    cosine = residual_cosine.array(part="block")
    depth = len(cosine)
    kl = logit_lens.array(quantity="kl")[:depth]
    overlap = logit_lens.array(quantity="top5_overlap")[:depth]
    found = {
        "cosine": _last_turn(cosine),
        "kl": _first(kl < kl_share * np.max(kl, initial=0.0)),
        "overlap": _first(overlap > overlap_from),
    }
    return found | {f"{name}_ratio": (block + 1) / depth for name, block in found.items()}


def _first(crossed: np.ndarray) -> float:
    return float(crossed.argmax()) if crossed.any() else float("nan")


def _last_turn(cosine: np.ndarray) -> float:
    """The last block where the centred mean of three (two at the ends) goes from negative to positive."""
    padded = np.concatenate([[np.nan], cosine, [np.nan]])
    windows = np.stack([padded[:-2], padded[1:-1], padded[2:]])
    mean = np.nansum(windows, 0) / np.isfinite(windows).sum(0).clip(1)
    turns = np.flatnonzero((mean[:-1] < 0) & (mean[1:] > 0)) + 1
    return float(turns[-1]) if len(turns) else float("nan")
