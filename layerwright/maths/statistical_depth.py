"""How central each vector is in a set of vectors, by angle: a statistical depth, in time linear in their number."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_within(x: Tensor) -> Tensor:
    """Depth of each vector among the others of its own set.

        D(x) = 2 − mean_{y≠x} (1 − cos(x, y)) = 2 − (N (1 − u_x·ū) − (1 − u_x·u_x)) / (N − 1)

    with u the vectors at length 1 and ū their mean: N d operations instead of N² d.

    Args:
        x: `[N, d]`; the cosine with a vector of zeros is 0.

    Returns:
        `[N]`, float64, in [0, 2]; NaN where there is no other vector, and where anything is not finite.

    Example:
        >>> depth_within(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
        [1.5, 1.5, 1.0]
    """
    x, n = x.double(), len(x)
    if n < 2:
        return torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
    scale = _over_length(x)
    alike = scale * (x @ (scale @ x)) / n
    return (2 - (n * (1 - alike) - (scale == 0).double()) / (n - 1)).clamp(0.0, 2.0)


def depth_among(x: Tensor, others: Tensor) -> Tensor:
    """Depth of vectors in a set of other ones: 2 − mean_y (1 − cos(x, y)).

    Args:
        x: `[M, d]`.
        others: `[N, d]`, also where M = N.

    Returns:
        `[M]`, float64, in [0, 2]; NaN where there are none, and where anything is not finite.

    Example:
        >>> depth_among(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    x, others = x.double(), others.double()
    return (1 + _over_length(x) * (x @ (_over_length(others) @ others)) / len(others)).clamp(0.0, 2.0)


def _over_length(x: Tensor) -> Tensor:
    """1/‖x‖ of each vector, 0 for one of zeros: no second copy of them is made."""
    length = x.norm(dim=-1)
    return torch.where(length == 0, length, 1 / length)
