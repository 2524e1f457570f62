"""How much a block, or a sublayer of it, adds to the stream."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.similarity import relative_norm


@measure(unit="1", range=(0, None), paper="2505.13898")
def residual_contribution(update: Tensor, before: Tensor) -> Tensor:
    """Size of what a block or sublayer adds, relative to the stream it adds to.

    Mean over tokens of

        ‖update‖ / max(‖before‖, 1e-6)

    where `before` is the block's input h for the block and its attention, and h + attention for the MLP (h again where
    both read it in parallel). Near 0 the part hardly acts; above 1 it outweighs all that came before.

    Args:
        update: what is added, `[batch, token, width]`.
        before: the stream it is added to, same shape.

    Returns:
        `[batch, token]`, unit 1, at least 0; 0 for a part that adds nothing, also to a zero stream.

    Example:
        >>> import torch
        >>> residual_contribution(torch.tensor([[[0.0, 5.0]]]), torch.tensor([[[6.0, 8.0]]]))
        tensor([[0.5000]])

    Reference: arXiv 2505.13898.
    """
    return relative_norm(update, before)
