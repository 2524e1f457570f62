"""Measures of two models hold their states against each other row by row: the rows must be of the same tokens."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.errors import UserError


def check_same_tokens(sequences: Tensor, other_sequences: Tensor) -> None:
    """Raise unless the collected tokens of two surveys are those of the same sequences, one for one.

    Raises:
        UserError: they are not.

    Example:
        >>> import torch
        >>> check_same_tokens(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    """
    if sequences.tolist() != other_sequences.tolist():
        raise UserError(
            f"got {len(sequences)} tokens of this model and {len(other_sequences)} of the other, not of the same "
            "sequences one for one; expected the same data, cut into the same tokens"
        )
