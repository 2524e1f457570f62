"""How much of every state of one stream is a linear function of every state of another."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.registry import measure
from layerwright.core.same_tokens import check_same_tokens
from layerwright.maths.maps import map_errors
from layerwright.maths.ridge import split_sequences


@measure(
    unit={"relative_error": "1", "error_over_norm": "1"}, range=(0, None), tier="deep", paper="2505.13898",
    index=("point", "other_point"),
)  # fmt: skip
def linear_maps(
    features: Tensor, other_features: Tensor, sequences: Tensor, other_sequences: Tensor, *, seed: int = 0
) -> dict[tuple[int, int, str], float]:
    """What a linear map from every state X of this model misses of every state Y of the other model.

    With f the ridge regression with an offset, fitted on three fifths of the sequences, errors on the others,

        relative_error = ‖Y − f(X)‖ / ‖Y − mean‖,   error_over_norm = ‖Y − f(X)‖ / ‖Y‖

    1 is no better than the mean of the states fitted on, and above 1 the map misleads. The second, as published, is
    small already where states share a large offset. Each half of the held-out states has the penalty that is best on
    the other half. Without another model the other is the model itself, and every state is mapped to every other one.
    Maps from states wider than there are tokens to fit on have directions that they never saw, and look worse than they
    are.

    Args:
        features: every state at the collected tokens, `[L + 1, n, d]`.
        other_features: those of the other model at the same tokens, `[L' + 1, n, d']`.
        sequences: number of the sequence of each token, `[n]`.
        other_sequences: the same of the other model.
        seed: of the split.

    Returns:
        by point, point of the other model and quantity; no number for states that do not vary or are not finite.

    Raises:
        UserError: the two were not measured on the same tokens, or on fewer than three sequences.

    Example:
        >>> import torch
        >>> x = torch.arange(12.0).reshape(1, 12, 1)
        >>> found = linear_maps(x, 3 - 2 * x, torch.arange(12), torch.arange(12))
        >>> f"{found[0, 0, 'relative_error']:.2f}"
        '0.00'

    Reference: arXiv 2505.13898.
    """
    check_same_tokens(sequences, other_sequences)
    try:
        split = split_sequences(sequences, seed)
    except ValueError as error:
        raise UserError(f"{error}; give more data") from None
    errors = map_errors([*features], [*other_features], split)
    named = {"relative_error": errors.relative.tolist(), "error_over_norm": errors.over_norm.tolist()}
    return {
        (s, t, name): rows[s][t]
        for s in range(len(features))
        for t in range(len(other_features))
        for name, rows in named.items()
    }
