"""How large the gradient of each weight matrix is, and in how many directions it pulls."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.few import FEW, of_first
from layerwright.core.registry import measure
from layerwright.maths.gradient import MatrixGradient
from layerwright.maths.spectrum import effective_rank

_NAMES = ("nuclear_norm", "effective_rank", "frobenius_norm", "largest", "smallest", "ratio")
_OF_LOSS = ("nuclear_norm", "frobenius_norm", "largest", "smallest")
_UNITS = {name: "1" if name in ("effective_rank", "ratio") else "nat/token" for name in _NAMES}


@measure(
    unit=_UNITS | {f"{name}_over_loss": "1" for name in _OF_LOSS}, range=(0, None), tier="deep", paper="2410.23743"
)
def gradient_spectrum(
    matrix_gradient: MatrixGradient, loss: Tensor, sequence_numbers: Tensor, *, sequences: int = FEW
) -> dict[str, tuple[Tensor, Tensor]]:
    """Singular values of each sequence's gradient by every weight matrix, and what is read off them.

    With σ_1 ≥ σ_2 ≥ … those of ∂loss/∂W for one sequence, p = σ / Σσ, and the mean over sequences taken afterwards,

        nuclear_norm = Σσ,   effective_rank = exp(−Σ p ln p),   frobenius_norm = √Σσ²,   ratio = σ_1 / Σσ
        largest = σ_1,   smallest = σ_n, with n the least of tokens, rows and columns

    each length also over the loss. The loss is the mean over the sequence's labelled tokens. The first sequences of the
    data are measured, 16 unless told otherwise, as all their values cost more than all gradients. One sequence's
    gradient has a rank of at most its tokens, so that its values come from what the matrix read and what came back to
    it, without the gradient; `smallest` is zero but for rounding where a token has no loss. Data that
    fit the model well give a low nuclear norm; the paper's higher effective rank for them the bundled model does not
    show (claim `gradient_rank_by_data`).

    Args:
        matrix_gradient: ∂loss/∂W of each sequence.
        loss: nat/token, `[batch]`.
        sequence_numbers: of each in the data, `[batch]`, rising.
        sequences: how many to measure, from 1 on.

    Returns:
        `[batch]` each, and which were measured; ranks from 1 on, all 0 where the gradient is zero.

    Raises:
        UserError: `sequences` is no whole number from 1 on.

    Example:
        >>> import torch
        >>> one = MatrixGradient(torch.eye(2)[None], 2 * torch.eye(2)[None])
        >>> found = gradient_spectrum(one, torch.tensor([4.0]), torch.tensor([0]))
        >>> [round(found[name][0].item(), 4) for name in ("nuclear_norm", "effective_rank", "nuclear_norm_over_loss")]
        [4.0, 2.0, 1.0]

    Reference: arXiv 2410.23743; the effective rank as in 2504.10766.
    """
    return of_first(sequence_numbers, sequences, lambda few: _read_off(matrix_gradient.of(few).values(), loss[few]))


def _read_off(values: Tensor, loss: Tensor) -> dict[str, Tensor]:
    total, top = values.sum(-1), values.amax(-1)
    numbers = (
        total, effective_rank(values), values.norm(dim=-1), top, values[:, -1],
        torch.where(total == 0, torch.zeros_like(total), top / total),
    )  # fmt: skip
    found = dict(zip(_NAMES, numbers, strict=True))
    return found | {f"{name}_over_loss": found[name] / loss.to(total) for name in _OF_LOSS}
