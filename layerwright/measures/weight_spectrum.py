"""Norms and ranks of the weight matrices of every block."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths import spectrum

_NAMES = ("stable_rank", "effective_rank", "spectral_norm", "frobenius_norm")


@measure(unit=dict.fromkeys(_NAMES, "1"), range=(0, None), tier="standard", paper="1501.01571")
def weight_spectrum(weight: Tensor) -> dict[str, Tensor]:
    """Norms and ranks of every weight matrix.

    With singular values σ_1 ≥ σ_2 ≥ … and p = σ / Σσ,

        stable_rank = Σσ² / σ_1²,   effective_rank = exp(−Σ p ln p),   spectral_norm = σ_1,   frobenius_norm = √Σσ²

    A stable rank far below the smaller side says that few directions carry the matrix. Convolutions are read as
    out × (in · kernel).

    Args:
        weight: `[rows, columns]`.

    Returns:
        single numbers, unit 1, at least 0; all 0 for a zero matrix, NaN where the matrix is not finite.

    Example:
        >>> found = weight_spectrum(torch.diag(torch.tensor([2.0, 1.0])))
        >>> round(found["stable_rank"].item(), 4), round(found["spectral_norm"].item(), 4)
        (1.25, 2.0)

    Reference: arXiv 1501.01571 for the stable rank.
    """
    if not weight.isfinite().all():
        return dict.fromkeys(_NAMES, torch.tensor(torch.nan))
    values = spectrum.singular_values(weight)
    numbers = (spectrum.stable_rank(values), spectrum.effective_rank(values), values.amax(), values.norm())
    return dict(zip(_NAMES, numbers, strict=True))
