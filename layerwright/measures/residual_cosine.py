"""Whether a block strengthens, turns or erases what the stream holds."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.similarity import cosine


@measure(unit="1", range=(-1, 1), paper="2505.13898")
def residual_cosine(update: Tensor, before: Tensor) -> Tensor:
    """Direction of what a block or sublayer adds, against the stream it adds to.

    Mean over tokens of

        ⟨update, before⟩ / (‖update‖ ‖before‖)

    Below 0 the part erases features, near 0 it writes new directions, above 0 it strengthens what is there.

    Args:
        update: what is added, `[batch, token, width]`.
        before: the stream it is added to, same shape.

    Returns:
        `[batch, token]`, unit 1, in [-1, 1]; 0 where either vector is zero.

    Example:
        >>> import torch
        >>> residual_cosine(torch.tensor([[[-2.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
        tensor([[-1.]])

    Reference: arXiv 2505.13898.
    """
    return cosine(update, before)
