"""How large the gradient of each weight matrix is, and in how many directions it pulls."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.spectrum import effective_rank

_NAMES = ("nuclear_norm", "effective_rank", "frobenius_norm", "largest", "smallest", "ratio")
_OF_LOSS = ("nuclear_norm", "frobenius_norm", "largest", "smallest")
_UNITS = {name: "1" if name in ("effective_rank", "ratio") else "nat/token" for name in _NAMES}


@measure(
    unit=_UNITS | {f"{name}_over_loss": "1" for name in _OF_LOSS}, range=(0, None), tier="deep", paper="2410.23743"
)
def gradient_spectrum(gradient_values: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Singular values of each sequence's gradient by every weight matrix, and what is read off them.

    With σ_1 ≥ σ_2 ≥ … those of ∂loss/∂W for one sequence, p = σ / Σσ, and the mean over sequences taken afterwards,

        nuclear_norm = Σσ,   effective_rank = exp(−Σ p ln p),   frobenius_norm = √Σσ²,   ratio = σ_1 / Σσ
        largest = σ_1,   smallest = σ_n, with n the least of tokens, rows and columns

    each length also over the loss. The loss is the mean over the sequence's labelled tokens. One sequence's gradient
    has a rank of at most its tokens, so that its values come from what the matrix read and what came back to it,
    without the gradient; `smallest` is zero but for rounding where a token has no loss. Data that
    fit the model well give a low nuclear norm; the paper's higher effective rank for them the bundled model does not
    show (claim `gradient_rank_by_data`).

    Args:
        gradient_values: σ, `[batch, n]`, largest first.
        loss: nat/token, `[batch]`.

    Returns:
        `[batch]` each; ranks from 1 on, all 0 where the gradient is zero.

    Example:
        >>> found = gradient_spectrum(torch.tensor([[2.0, 2.0]]), torch.tensor([4.0]))
        >>> [round(found[name].item(), 4) for name in ("nuclear_norm", "effective_rank", "nuclear_norm_over_loss")]
        [4.0, 2.0, 1.0]

    Reference: arXiv 2410.23743; the effective rank as in 2504.10766.
    """
    total, top = gradient_values.sum(-1), gradient_values.amax(-1)
    numbers = (
        total, effective_rank(gradient_values), gradient_values.norm(dim=-1), top, gradient_values[:, -1],
        torch.where(total == 0, torch.zeros_like(total), top / total),
    )  # fmt: skip
    found = dict(zip(_NAMES, numbers, strict=True))
    return found | {f"{name}_over_loss": found[name] / loss.to(total) for name in _OF_LOSS}
