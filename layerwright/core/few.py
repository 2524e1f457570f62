"""Measures that look at the first sequences of the data only, as they cost more than the passes that feed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor
from torch.nn.functional import pad

from layerwright.core.errors import UserError

# Sequences that such measures look at unless told otherwise.
FEW = 16
Name = TypeVar("Name")
Counted = tuple[Tensor, Tensor]


def of_first(
    sequence_numbers: Tensor, sequences: int, run: Callable[[slice], Mapping[Name, Tensor | Counted]]
) -> dict[Name, Counted]:
    """What a measure makes of the sequences whose number is below a bound; the others do not count.

    Args:
        sequence_numbers: of all sequences given, `[batch]`, rising.
        sequences: the bound, from 1 on.
        run: from the places of those below it to their numbers, `[few]`, or these and which of them count.

    Returns:
        `[batch]` each, and which of them count, `[batch, 1]`.

    Raises:
        UserError: the bound is no whole number from 1 on.

    Example:
        >>> import torch
        >>> of_first(torch.tensor([2, 3, 4]), 4, lambda few: {"double": 2 * torch.tensor([2.0, 3.0, 4.0])[few]})
        {'double': (tensor([4., 6., 0.]), tensor([[ True],
                [ True],
                [False]]))}
    """
    measured = sequence_numbers < bound(sequences)
    rest = len(measured) - (count := int(measured.sum()))
    found: dict[Name, Counted] = {}
    for name, numbers in run(slice(0, count)).items():
        values, known = (numbers, measured[:count]) if isinstance(numbers, Tensor) else numbers
        found[name] = pad(values, (0, rest)), pad(known, (0, rest))[:, None]
    return found


def bound(sequences: object) -> int:
    """A number of sequences.

    Raises:
        UserError: it is no whole number from 1 on.
    """
    if not isinstance(sequences, int) or isinstance(sequences, bool) or sequences < 1:
        raise UserError(f"got sequences={sequences!r}; expected a whole number from 1 on")
    return sequences
