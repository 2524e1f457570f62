"""How close a block is to doing nothing, seen from its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure


@measure(unit="1", range=(0, None), tier="standard", paper="2502.05795")
def jacobian_identity(probe: Tensor, pullback: Tensor) -> Tensor:
    """Distance of a block's Jacobian from the identity, relative to the identity's own size.

    With one standard normal v for every sequence (all its tokens and features at once),

        ‖Jᵀv − v‖ / ‖v‖  ≈  ‖J − I‖_F / √n

    averaged over sequences; n = tokens · width. 0 for a block that passes the stream through.

    Args:
        probe: v, `[batch, token, width]`, zero on padding.
        pullback: Jᵀv, same shape.

    Returns:
        `[batch]`, unit 1, at least 0.

    Example:
        >>> v = torch.tensor([[[3.0, 4.0]]])
        >>> jacobian_identity(v, 1.5 * v)
        tensor([0.5000])

    Reference: arXiv 2502.05795.
    """
    norm = torch.linalg.vector_norm
    return norm(pullback - probe, dim=(-2, -1)) / norm(probe, dim=(-2, -1)).clamp_min(1e-12)
