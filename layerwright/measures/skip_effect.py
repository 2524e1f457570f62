"""What later blocks do differently when one block is skipped."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.similarity import relative_norm


@measure(unit="1", range=(0, None), tier="standard", paper="2505.13898")
def skip_effect(update: Tensor, skipped_update: Tensor) -> Tensor:
    """How much a later block's update changes when an earlier block is skipped.

    For every skipped block s and every later block l, with c_l the update of l and c̄_l the same when s is skipped,

        ‖c_l − c̄_l‖ / max(‖c_l‖, 1e-6)

    The paper reports the maximum over tokens; the mean and its interval are beside it. `later`: s is bypassed at every
    token but the first. `future`: s is bypassed before a random token only, and the effect is measured from that token
    on: what s did for tokens to come.

    Args:
        update: c_l, `[batch, token, width]`.
        skipped_update: c̄_l, same shape.

    Returns:
        `[batch, token]`, unit 1, at least 0.

    Example:
        >>> import torch
        >>> skip_effect(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
        tensor([[0.5000]])

    Reference: arXiv 2505.13898.
    """
    return relative_norm(update - skipped_update, update)
