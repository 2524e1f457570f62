"""Divergences and agreements between distributions along the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (ln p − ln q) in nat, p and q the softmax of logits; ln floored at -10,000, so that 0 ln 0/0 is 0.

    Example:
        >>> kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor(0.)
    """
    p, q = (logits.log_softmax(-1).clamp_min_(-1e4) for logits in (p_logits, q_logits))
    return torch.linalg.vecdot(p.exp(), p - q).clamp_min(0.0)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """|a ∩ b| / k of two sets of k indices along the last axis, in [0, 1].

    Example:
        >>> overlap(torch.tensor([0, 1]), torch.tensor([0, 2]))
        tensor(0.5000)
    """
    return (a.unsqueeze(-1) == b.unsqueeze(-2)).any(-1).float().mean(-1)
