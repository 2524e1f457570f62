"""The learning rate over a run."""

from __future__ import annotations

import math

FLOOR = 0.1


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth, as a share of the peak.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: steps until the peak, which step `warmup` − 1 has.

    Returns:
        in (0, 1]; 0.1 at the last step.

    Reference:
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts (arXiv 1608.03983), one period.

    Example:
        >>> [round(learning_rate(k, 6, 2), 3) for k in range(6)]
        [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
