"""Singular values of matrices and what is read off them."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, largest first, float64.

    By the smaller Gram matrix in float64: several times faster than an SVD, and for float32 weights as accurate for
    every value above about 1e-8 of the largest.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    x = matrix.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    return torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(-1)


def effective_rank(values: Tensor) -> Tensor:
    """exp(−Σ p ln p) with p = σ/Σσ, in [1, number of values]; 0 for a zero matrix.

    Example:
        >>> effective_rank(torch.ones(5))
        tensor(5.)
    """
    total = values.sum(-1)
    p = values / total.clamp_min(torch.finfo(values.dtype).tiny).unsqueeze(-1)
    rank = torch.exp(-torch.special.xlogy(p, p).sum(-1))
    return torch.where(total == 0, torch.zeros_like(rank), rank)


def stable_rank(values: Tensor) -> Tensor:
    """Σσ² / σ₁², in [1, rank]; 0 for a zero matrix.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0]))
        tensor(1.2500)
    """
    top = values.amax(-1)
    ratio = values.square().sum(-1) / top.square().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(top == 0, torch.zeros_like(ratio), ratio)
