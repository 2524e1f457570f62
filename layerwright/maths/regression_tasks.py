"""Linear regression tasks for learners in context: made ones, and those that a user brings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def regression_tasks(
    count: int, points: int, dimensions: int, *, noise: float = 0.0, ratio: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Tasks y = wᵀx + ε, each with weights, points and a query of its own.

    w ~ N(0, I), ε ~ N(0, σ²), and x ~ N(0, R diag(v) Rᵀ) with R turned at random for each task; half of the v are
    `ratio` times the others, and their mean is 1.

    Args:
        count: N, how many tasks.
        points: T, of each context.
        dimensions: d.
        noise: σ of all targets, that of the query too.
        ratio: condition number of the points' covariance, from 1 on.
        seed: of the draw.

    Returns:
        `[N, T + 1, d]` and `[N, T + 1]`, float64; the last point is the query.

    Example:
        >>> xs, ys = regression_tasks(3, 8, 2)
        >>> weights = torch.linalg.lstsq(xs[:, :8], ys[:, :8, None]).solution
        >>> torch.allclose(xs[:, 8:] @ weights, ys[:, 8:, None])
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    xs, weights = normal(count, points + 1, dimensions), normal(count, dimensions, 1)
    if ratio != 1:
        variances = torch.ones(dimensions, dtype=torch.float64)
        variances[: dimensions // 2] = ratio
        turns = torch.linalg.qr(normal(count, dimensions, dimensions)).Q
        xs = (xs * (variances / variances.mean()).sqrt()) @ turns.mT
    ys = (xs @ weights).squeeze(-1)
    return xs, ys + noise * normal(count, points + 1) if noise else ys


def brought_tasks(xs: np.ndarray, ys: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points `[T + 1, d]` or `[N, T + 1, d]` and their targets, in float64; one task becomes a list of one.

    Raises:
        ValueError: they are no numbers.

    Example:
        >>> xs, ys = brought_tasks(np.ones((3, 2), dtype=int), np.ones(3))
        >>> tuple(xs.shape), tuple(ys.shape)
        ((1, 3, 2), (1, 3))
    """
    try:
        points, targets = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (xs, ys))
    except (TypeError, ValueError):
        raise ValueError("got points or targets that are no numbers; expected arrays of numbers") from None
    return (points[None], targets[None]) if points.ndim == 2 else (points, targets)
