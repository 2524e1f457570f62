"""What skipping a block would cost, predicted from one gradient."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure


@measure(unit="nat/token", tier="standard", paper="2505.13898")
def first_order_skip(update: Tensor, gradient: Tensor) -> Tensor:
    """Rise of the loss if the block were skipped, to first order: one backward pass for all blocks.

    Mean over tokens of

        −⟨∂loss/∂h_{l+1}, c_l⟩

    with c_l the block's update. Skipping is no small change, so that the ranking is what to read; how well it holds
    here is in `first_order_agreement`.

    Args:
        update: c_l, `[batch, token, width]`.
        gradient: derivative of the mean loss by the stream after the block, times the number of tokens.

    Returns:
        `[batch, token]`, nat/token, of either sign.

    Example:
        >>> import torch
        >>> first_order_skip(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, -1.0]]]))
        tensor([[1.5000]])

    Reference: the skip is that of arXiv 2505.13898; the linearisation is the usual one of attribution.
    """
    return -(update * gradient).sum(-1)
