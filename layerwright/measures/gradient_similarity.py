"""Whether gradients of different weight matrices, blocks or sequences point the same way."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.gradient import MatrixGradient


@measure(unit="1", range=(-1, 1), tier="deep", paper="2504.10766")
def gradient_similarity(
    matrix_gradient: MatrixGradient, other_gradient: MatrixGradient
) -> dict[tuple[()], tuple[Tensor, Tensor]]:
    """Cosine between the gradients of one sequence by two weight matrices of the same shape.

        cos = ⟨G, G'⟩ / (‖G‖ ‖G'‖),    ⟨G, G'⟩ = Σ_{st} (Δ Δ'ᵀ)_{st} (X X'ᵀ)_{st}

    from token factors G = Δᵀ X alone. `beside` says which: another matrix of the block, the same one of the
    `next block`, or the same one for the `sequence before`, in pairs of sequences 0 and 1, 2 and 3, … Near 0 in
    trained language models between matrices and blocks; between sequences a negative value says that they pull the
    weights in opposite directions.

    Args:
        matrix_gradient: G of each sequence.
        other_gradient: G' of each.

    Returns:
        `[batch]`, in [-1, 1]; sequences where either is zero do not count.

    Example:
        >>> import torch
        >>> one = MatrixGradient(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0]]]))
        >>> two = MatrixGradient(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[3.0]]]))
        >>> round(gradient_similarity(one, two)[()][0].item(), 4)
        0.7071

    Reference: arXiv 2504.10766.
    """
    cosine, known = matrix_gradient.cosine(other_gradient)
    return {(): (cosine, known[:, None])}
