"""Ranks of one set of numbers among another, and sums over sequences drawn again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

REPLICATES = 1000


def share_below(values: Tensor, others: Tensor) -> float:
    """Mean over the other values of the share of `values` below them, ties by half; 1/2 where both are alike.

    Example:
        >>> share_below(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
        0.875
    """
    ordered = values.sort().values
    below, until = (torch.searchsorted(ordered, others, right=right) for right in (False, True))
    return float((below + until).double().mean() / (2 * len(values)))


def resampled_sums(sums: np.ndarray, seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """Sums over sequences drawn with replacement, as many as there are; the same seed draws the same ones.

    Args:
        sums: of each sequence, `[..., sequence]`.
        seed: of the draw.
        replicates: how many.

    Returns:
        `[..., replicate]`.

    Example:
        >>> resampled_sums(np.array([2.0]), replicates=3)
        array([2., 2., 2.])
    """
    n = sums.shape[-1]
    return sums @ np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), replicates).T.astype(float)
