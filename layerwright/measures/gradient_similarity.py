"""Whether gradients of different weight matrices, blocks or sequences point the same way."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.few import FEW, of_first
from layerwright.core.registry import measure
from layerwright.maths.gradient import MatrixGradient


@measure(unit="1", range=(-1, 1), tier="deep", paper="2504.10766")
def gradient_similarity(
    matrix_gradient: MatrixGradient, other_gradient: MatrixGradient, sequence_numbers: Tensor, *, sequences: int = FEW
) -> dict[tuple[()], tuple[Tensor, Tensor]]:
    """Cosine between the gradients of one sequence by two weight matrices of the same shape.

        cos = ⟨G, G'⟩ / (‖G‖ ‖G'‖),    ⟨G, G'⟩ = Σ_{st} (Δ Δ'ᵀ)_{st} (X X'ᵀ)_{st}

    from token factors G = Δᵀ X alone. `beside` says which: another matrix of the block, the same one of the
    `next block`, or the same one for the `sequence before`, in pairs of sequences 0 and 1, 2 and 3, … Near 0 in
    trained language models between matrices and blocks; between sequences a negative value says that they pull the
    weights in opposite directions. The first sequences of the data are measured, 16 unless told otherwise.

    Args:
        matrix_gradient: G of each sequence.
        other_gradient: G' of each.
        sequence_numbers: of each in the data, `[batch]`, rising.
        sequences: how many to measure, from 1 on.

    Returns:
        `[batch]`, in [-1, 1]; sequences where either is zero do not count.

    Raises:
        UserError: `sequences` is no whole number from 1 on.

    Example:
        >>> import torch
        >>> one = MatrixGradient(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0]]]))
        >>> two = MatrixGradient(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[3.0]]]))
        >>> round(gradient_similarity(one, two, torch.tensor([0]))[()][0].item(), 4)
        0.7071

    Reference: arXiv 2504.10766.
    """
    return of_first(
        sequence_numbers, sequences, lambda few: {(): matrix_gradient.of(few).cosine(other_gradient.of(few))}
    )
