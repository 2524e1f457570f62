"""What states say of their input and of their label, layer by layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.labelled import labelled
from layerwright.core.registry import measure
from layerwright.maths.information import binned_information, entropy, kernel_information

_UNITS = dict.fromkeys(
    ("binned_input", "binned_label", "kernel_input", "kernel_label", "input_ceiling", "label_ceiling"), "bit"
) | {"binned_distinct": "1", "kernel_distinct": "1", "noise_variance": "1"}
# Below this share of their squared length the spread of states in float32 is rounding.
_ROUNDING = 1e-12


@measure(unit=_UNITS, range=(0, None), tier="deep", paper="1703.00810", index=("point",))
def information_plane(
    features: Tensor,
    targets: Tensor,
    summaries: Tensor,
    sequence_labels: Tensor,
    *,
    bins: int = 30,
    saturating: bool = False,
    noise: float = 0.1,
) -> dict[tuple[int, str], float]:
    """Mutual information of the states with their input, I(X; T), and with their label, I(T; Y), by two estimators.

    T is the state of a sequence where the data give labels of sequences, else of a token with the next token for Y.
    Of N states, all of different inputs,

        binned: T by equal bins of each unit,   I(X; T) = H(T),   I(T; Y) = H(T) + H(Y) − H(T, Y)
        kernel: T + N(0, σ²),   I(X; T) ≤ I_σ = −mean_i log2 mean_j exp(−‖t_i − t_j‖² / 2σ²)
                I(T; Y) = I_σ − Σ_y p(y) I_σ(states of label y)
        input_ceiling = log2 N,   label_ceiling = H(Y)

    What it cannot say: a network without noise keeps all of its input, and what the estimators see is how far states
    lie apart beside a bin or σ. In wide layers no two states share all bins: then `binned_distinct`, the share of
    states that are alone in theirs, is 1, both binned numbers are their ceilings and say that N samples differ, no
    more; the same holds of `kernel_distinct`. A fall with training is compression for these bins and this σ: it comes
    with units that saturate (tanh) and mostly not with ReLU, and says nothing on generalisation by itself. I(T; Y) of
    few samples is biased upwards.

    Args:
        features: every state at the collected tokens, `[L + 1, n, d]`.
        targets: the token that follows each, `[n]`.
        summaries: every state of each sequence, `[L + 1, S, d]`.
        sequence_labels: `[S]`.
        bins: bins of each unit, over the range of all numbers of a point.
        saturating: whether the units end at −1 and 1, as tanh does: then the bins are of [−1, 1].
        noise: σ² over the mean square distance of the states of a point from their mean, for all units together.

    Returns:
        by point and quantity, in bit; `noise_variance` is σ².

    Raises:
        UserError: fewer than two labels, states that are not finite, an option out of its range.

    Example:
        >>> states = torch.tensor([[[0.0], [0.0], [1.0], [1.0]]])
        >>> found = information_plane(states, torch.tensor([3, 3, 4, 4]), states[:, :1], torch.tensor([-100]))
        >>> [found[0, name] for name in ("binned_input", "binned_label", "input_ceiling", "label_ceiling")]
        [1.0, 1.0, 2.0, 1.0]

    Reference: arXiv 1703.00810; kernel bound as in 1706.02419.
    """
    if bins < 2 or not noise > 0:
        raise UserError(f"got bins={bins} and noise={noise:g}; expected two bins or more and a positive noise")
    by_sequence = bool((sequence_labels >= 0).any())
    chosen = labelled(*((summaries, sequence_labels) if by_sequence else (features, targets)))
    ceilings = {
        "input_ceiling": math.log2(len(chosen.places)),
        "label_ceiling": entropy(chosen.places.bincount()),
    }
    found: dict[tuple[int, str], float] = {}
    for point, x in chosen.points():
        binned = binned_information(x, chosen.places, bins, (-1.0, 1.0) if saturating else None)
        variance = noise * _spread(x)
        kernel = kernel_information(x, chosen.places, variance)
        numbers = {
            **{f"binned_{name}": value for name, value in binned._asdict().items()},
            **{f"kernel_{name}": value for name, value in kernel._asdict().items()},
            **ceilings,
            "noise_variance": variance,
        }
        found |= {(point, name): value for name, value in numbers.items()}
    return found


def _spread(states: Tensor) -> float:
    """Mean square distance of states from their mean, at least what rounding makes of states that are all the same."""
    x = states.double()
    square = torch.linalg.vecdot(x, x).mean()
    return float((x - x.mean(0)).square().sum(1).mean().clamp_min(_ROUNDING * square).clamp_min(1e-300))
