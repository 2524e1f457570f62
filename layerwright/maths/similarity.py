"""Lengths, ratios and angles of vectors along the last axis, with 0/0 defined."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The denominator's floor in the published code of arXiv 2505.13898.
FLOOR = 1e-6


def relative_norm(x: Tensor, y: Tensor) -> Tensor:
    """‖x‖ / ‖y‖ along the last axis, the denominator at least 1e-6: 0/0 is 0.

    Example:
        >>> relative_norm(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0]))
        tensor(0.5000)
    """
    return torch.linalg.vector_norm(x, dim=-1) / torch.linalg.vector_norm(y, dim=-1).clamp_min(FLOOR)


def relative_error(x: Tensor, y: Tensor) -> float:
    """Largest |x − y| over largest |y|, of all numbers, where y is finite; 0 where it nowhere is.

    Example:
        >>> round(relative_error(torch.tensor([1.0, 2.5]), torch.tensor([torch.nan, 2.0])), 4)
        0.25
    """
    known = y.isfinite()
    if not known.any():
        return 0.0
    difference = (x - y)[known].abs().nan_to_num(torch.inf).amax()
    return float(difference / y[known].abs().amax().clamp_min(1e-12))


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ / (‖x‖ ‖y‖) along the last axis, in [-1, 1]; 0 where either vector is zero.

    Example:
        >>> cosine(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))
        tensor(0.7071)
    """
    product = torch.linalg.vecdot(x, y)
    norms = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    return torch.where(norms == 0, torch.zeros_like(product), product / norms).clamp(-1.0, 1.0)


def angle(x: Tensor, y: Tensor) -> Tensor:
    """The angle between two vectors over π, in [0, 1], exact for small angles; 1/2 where either is zero.

    2·atan2(‖u − v‖, ‖u + v‖)/π with u, v the unit vectors: arccos loses half the digits near 0 and 1.

    Example:
        >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(0.5000)
    """
    u, v = (torch.nn.functional.normalize(z, dim=-1, eps=1e-30) for z in (x, y))
    difference, total = (torch.linalg.vector_norm(z, dim=-1) for z in (u - v, u + v))
    zero = (torch.linalg.vector_norm(u, dim=-1) == 0) | (torch.linalg.vector_norm(v, dim=-1) == 0)
    return torch.where(zero, torch.full_like(total, 0.5), 2 * torch.atan2(difference, total) / math.pi)
