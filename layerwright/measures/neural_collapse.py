"""How far the states of each class have collapsed to their mean, layer by layer."""

from __future__ import annotations

import contextlib

from torch import Tensor

from layerwright.core.labelled import labelled
from layerwright.core.registry import measure
from layerwright.maths.class_moments import ClassMoments
from layerwright.maths.collapse import UNITS, Alike, between, collapse


@measure(unit=UNITS, tier="deep", paper="2405.17767", index=("point",))
def neural_collapse(
    features: Tensor, targets: Tensor, summaries: Tensor, sequence_labels: Tensor, *, least: int = 2
) -> dict[tuple[int, str], float]:
    """How far the states of each class have collapsed to their mean, at every point of the stream.

    Classes are the labels of the sequences where the data give any, each sequence by its summary; else the next tokens.
    With μ_c and σ_c² mean and variance of class c of K, M_c = μ_c − μ_G from the mean of the means, Σ_W and Σ_B the
    covariances within classes and of means,

        nc1 = Tr(Σ_W Σ_B†) / K,   variance_ratio = Tr Σ_W / Tr Σ_B,   cdnv = mean of (σ_c² + σ_c'²) / 2‖μ_c − μ_c'‖²
        equinorm = std / mean of ‖M_c‖,   equiangularity = std of cos(M_c, M_c')
        etf_error = ‖M Mᵀ/‖M Mᵀ‖ − (I − 11ᵀ/K)/√(K − 1)‖,   uniformity = variance of log 1/‖M_c/‖M_c‖ − M_c'/‖M_c'‖‖

    All are 0 where the classes have collapsed to a simplex; with more classes than the width plus one no simplex fits,
    `etf_error` cannot be 0, and `uniformity` says how evenly the means lie. `cosine`, the mean of the cosines, goes to
    −1/(K − 1). Pairs of classes with the same mean (`coinciding`, their share) are left out of `cdnv`. Variances divide
    by the samples of a class, so that classes of few samples look more collapsed than they are, and a class of one has
    none: compare only numbers of as many `classes` and `samples`. Points at which all classes are alike have no row.

    Args:
        features: every state at the collected tokens, `[L + 1, n, d]`.
        targets: the token that follows each, `[n]`.
        summaries: every state of each sequence, `[L + 1, S, d]`.
        sequence_labels: `[S]`.
        least: fewest samples of a class that takes part.

    Returns:
        by point and quantity.

    Raises:
        UserError: fewer than two classes, or states that are not finite.

    Example:
        >>> import torch
        >>> states = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 2.0]]])
        >>> found = neural_collapse(states, torch.tensor([5, 5, 8, 8]), states[:, :1], torch.tensor([-100]))
        >>> found[0, "variance_ratio"], found[0, "cdnv"]  # Tr Σ_W = (0 + 1)/2, Tr Σ_B = (1 + 1/4), ‖μ − μ'‖² = 5
        (0.4, 0.1)

    Reference: arXiv 2405.17767; ratio of traces as in 2210.16658, CDNV 2112.15121.
    """
    by_sequence = bool((sequence_labels >= 0).any())
    chosen = labelled(*((summaries, sequence_labels) if by_sequence else (features, targets)), least)
    found: dict[tuple[int, str], float] = {}
    for point, x in chosen.points():
        moments = ClassMoments(len(chosen.classes), x.shape[1])
        moments.add(x, chosen.places)
        classes = moments.result()
        with contextlib.suppress(Alike):
            numbers = collapse(classes, between(classes.means))
            found |= {(point, name): value for name, value in numbers.items()}
    return found
