"""Where a deep linear network with weight decay ends, class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.deep_linear import collapse_strengths, survival_count


@theory(paper="2301.00437")
def deep_linear_collapse(
    *,
    counts: Sequence[int] = (40, 20, 10, 3),
    matrices: int = 1,
    weight_decay: float = 5e-3,
    feature_decay: float = 1e-4,
) -> Prediction:
    """Neural collapse of a deep linear network on free features: how long each class's features and weights become.

    For min (1/2N) ‖W_M … W_1 H − Y‖² + (λ_W/2) Σ‖W_m‖² + (λ_H/2)‖H‖² with n_k of N samples in class k,

        b = M N (N λ_W^M λ_H)^{1/M},   b/n_k = M x^{M−1} / (x^M + 1)²,   ‖w_k‖² = N λ_H x^M
        ‖h_k‖² = ‖w_k‖² / (‖w_k‖² + N λ_H)²

    All features of a class are one vector, those of different classes are at right angles, and each points along its
    class's row of the product of matrices. Classes of fewer samples than `survives_from` have no features at all: they
    have collapsed to the origin, and with them the chance to tell them from one another.

    Assumes:
        features are free to move, as at the end of training of a network that can fit anything; the squared error, no
        bias, and at least as many dimensions as classes.

    Args:
        counts: n_k, samples of each class.
        matrices: M, linear layers on top of the features.
        weight_decay: λ_W, of each matrix.
        feature_decay: λ_H.

    Returns:
        by class: samples, squared lengths of features and rows, the output for its own class (1 would fit exactly), and
        whether it survives; the picture is the output by samples.

    Raises:
        UserError: a count, the number of matrices or a decay is not above 0.

    Example:
        >>> found = deep_linear_collapse(counts=[40, 3], weight_decay=0.3, feature_decay=0.01).table
        >>> found["survives"].tolist()
        [True, False]

    Reference: arXiv 2301.00437. Where its largest root is a local optimum only, energies are compared (derived here).
    """
    numbers = [counts] if isinstance(counts, int) else list(counts)
    if not numbers or not all(isinstance(n, int) and n > 0 for n in [*numbers, matrices]):
        raise UserError(f"got counts={numbers}, matrices={matrices}; expected whole numbers from 1 on")
    if not (0 < weight_decay < math.inf and 0 < feature_decay < math.inf):
        raise UserError(
            f"got weight_decay={weight_decay}, feature_decay={feature_decay}; expected both finite and above 0: "
            "without decay features grow without end"
        )
    w, h = collapse_strengths(numbers, matrices, weight_decay, feature_decay)
    least = survival_count(numbers, matrices, weight_decay, feature_decay)
    table = pd.DataFrame(
        {
            "class": range(len(numbers)), "samples": numbers, "feature_square": h, "row_square": w,
            "output": np.sqrt(h * w), "survives": w > 0,
        }
    )  # fmt: skip
    units = {"samples": "sample", "feature_square": "1", "row_square": "1", "output": "1"}
    notes = [f"a class survives from {least:.4g} samples on, of {sum(numbers)} in all"]
    outputs = sorted(zip(map(float, numbers), table["output"].tolist()))
    picture = Picture({"a class": outputs}, across="samples of the class", up="output for it (1)", log_across=True)
    return Prediction(table, units, notes, picture)
