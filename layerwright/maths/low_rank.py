"""Matrices of low rank."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of a rank, by the largest singular values: U_r·Σ_r·V_rᵀ.

    Args:
        matrix: `[..., m, n]`.
        rank: at most min(m, n) of it is used.

    Example:
        >>> truncated(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2).diagonal().round(decimals=4).tolist()
        [3.0, 2.0, 0.0]
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
