"""Kept states that have a class each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.core.errors import UserError


class Labelled(NamedTuple):
    """States of classes that are seen often enough.

    Attributes:
        states: every state of the stream, `[L + 1, n, d]`.
        kept: places that have such a class, `[m]`.
        classes: their labels, `[K]`.
        places: row of each place's class in `classes`, `[m]`.
    """

    states: Tensor
    kept: Tensor
    classes: Tensor
    places: Tensor

    def points(self) -> Iterator[tuple[int, Tensor]]:
        """Number of each point and the states there, `[m, d]`.

        Raises:
            UserError: some are not finite.
        """
        for k in range(len(self.states)):
            yield k, self.at(k)

    def at(self, k: int) -> Tensor:
        """The states at one point, `[m, d]`.

        Raises:
            UserError: some are not finite.
        """
        x = self.states[k][self.kept]
        bad = int((~x.isfinite().all(1)).sum())
        if bad:
            raise UserError(f"{bad} of {len(x)} states at point {k} are not finite; expected numbers")
        return x


def labelled(states: Tensor, labels: Tensor, least: int = 1) -> Labelled:
    """The states whose label, of those that are not negative, is that of `least` states or more.

    Args:
        states: `[L + 1, n, d]`.
        labels: `[n]`.
        least: fewest states of a class.

    Raises:
        UserError: fewer than two classes are left.

    Example:
        >>> found = labelled(torch.zeros(1, 5, 3), torch.tensor([9, 4, -100, 9, 4]), least=2)
        >>> found.kept.tolist(), found.classes.tolist(), found.places.tolist()
        ([0, 1, 3, 4], [4, 9], [1, 0, 1, 0])
    """
    if least < 1:
        raise UserError(f"got least={least}; expected 1 or more")
    present, place, counts = labels.unique(return_inverse=True, return_counts=True)
    enough = (present >= 0) & (counts >= least)
    if enough.sum() < 2:
        seen = int((present >= 0).sum())
        if not seen:
            raise UserError("the data have no labels and the model predicts no next token; give labels")
        raise UserError(
            f"{int(enough.sum())} of {seen} classes have {least} states or more; expected two: give more data"
        )
    number = torch.where(enough, enough.cumsum(0) - 1, -1)[place]
    kept = (number >= 0).nonzero().flatten()
    return Labelled(states, kept, present[enough], number[kept])
