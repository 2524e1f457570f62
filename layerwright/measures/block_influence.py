"""How far a block turns the stream."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.similarity import cosine


@measure(unit="1", range=(0, 2), paper="2403.03853")
def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """How far a block turns the stream: one minus the cosine between its input and its output.

    Mean over tokens of

        1 − cos(h_l, h_{l+1})

    A small influence says that the block's output points where its input did; whether the block can go is for the skip
    measures to say.

    Args:
        before: the block's input, `[batch, token, width]`.
        after: its output, same shape.

    Returns:
        `[batch, token]`, unit 1, in [0, 2]; 1 where either state is zero.

    Example:
        >>> import torch
        >>> block_influence(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]]))
        tensor([[1.]])

    Reference: arXiv 2403.03853.
    """
    return 1.0 - cosine(before, after)
