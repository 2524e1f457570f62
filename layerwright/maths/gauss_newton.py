"""The Gauss-Newton matrix of the cross entropy: its factor at the logits, and its spectrum from small samples."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_curvature(logits: Tensor, tangent: Tensor) -> Tensor:
    """Second derivative of the cross entropy by the logits, times a vector: S t = p ∘ t − p (p · t).

    It is the same for every label.

    Args:
        logits: `[..., C]`.
        tangent: t, `[..., C]`.

    Example:
        >>> softmax_curvature(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor([ 0.2500, -0.2500])
    """
    p = logits.softmax(-1)
    return p * tangent - p * (p * tangent).sum(-1, keepdim=True)


def softmax_root(logits: Tensor) -> Tensor:
    """R `[..., C, C]` with S = R Rᵀ: column c is √p_c (e_c − p).

    Example:
        >>> root = softmax_root(torch.zeros(2))
        >>> root @ root.T
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
    """
    p = logits.softmax(-1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)


def gauss_newton_values(inputs: Tensor, deltas: Tensor) -> Tensor:
    """Eigenvalues of the Gauss-Newton matrix of one linear layer that are not zero, exact, without the matrix.

    With x_n what the layer reads in sample n and δ_nc the derivative by what it gives of column c of `softmax_root`
    times the logits, G = (1/N) Σ_nc g_nc g_ncᵀ with g_nc = vec(δ_nc x_nᵀ), and its eigenvalues are those of

        K = (X Xᵀ) ∘ (Δ Δᵀ) / N,   over N · C columns

    For the last layer δ_nc is the column itself. A bias is one more input that is always 1.

    Args:
        inputs: X, `[N, i]`.
        deltas: Δ, `[N, C, o]`.

    Returns:
        `[N · C]`, float64, largest first, at least 0; all but min(N · C, i · o) of them are zero.

    Example:
        >>> x, logits = torch.tensor([[2.0]]), torch.zeros(1, 2)  # S = [[1, -1], [-1, 1]] / 4, G = S x²
        >>> gauss_newton_values(x, softmax_root(logits).mT).round(decimals=6).tolist()
        [2.0, 0.0]

    Reference: arXiv 1706.04454 for the matrix.
    """
    count, classes, _ = deltas.shape
    columns = deltas.double().flatten(0, 1)
    reads = inputs.double().repeat_interleave(classes, 0)
    gram = (reads @ reads.T) * (columns @ columns.T) / count
    return torch.linalg.eigvalsh(gram).clamp_min(0.0).flip(0)
