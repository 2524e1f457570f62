"""Divergences and agreements between distributions given by logits along the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (ln p − ln q) in nat, p and q the softmax of logits.

    Example:
        >>> kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor(0.)
    """
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


def top_overlap(p_logits: Tensor, q_logits: Tensor, k: int) -> Tensor:
    """|top-k of p ∩ top-k of q| / k, in [0, 1]; k is at most the number of classes.

    Example:
        >>> top_overlap(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(0.5000)
    """
    k = min(k, p_logits.shape[-1])
    p, q = p_logits.topk(k, dim=-1).indices, q_logits.topk(k, dim=-1).indices
    return (p.unsqueeze(-1) == q.unsqueeze(-2)).any(-1).float().mean(-1)
