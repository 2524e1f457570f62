"""The size of the stream at each depth."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure


@measure(unit="1", range=(0, None), paper="2502.05795")
def stream_scale(state: Tensor) -> Tensor:
    """Standard deviation of the stream's features at each of its L + 1 states.

    Mean over tokens of

        σ_l = √( mean_i (h_l,i − mean_i h_l)² )

    over the features i. In a pre-normalised tower σ grows with depth, and a block whose update keeps its size matters
    ever less: its Jacobian tends to the identity.

    Args:
        state: one state of the stream, `[batch, token, width]`.

    Returns:
        `[batch, token]`, in the stream's own unit, at least 0.

    Example:
        >>> stream_scale(torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]))
        tensor([[1.]])

    Reference: arXiv 2502.05795.
    """
    # The fused kernel of layer norm reads the stream once, and is exact to rounding also for a mean far above σ.
    inverse = torch.native_layer_norm(state, [state.shape[-1]], None, None, 0.0)[2]
    return inverse[..., 0].reciprocal()
