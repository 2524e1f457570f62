from __future__ import annotations

import pytest
import torch

from layerwright.core.errors import UserError
from layerwright.core.labelled import labelled

LABELS = torch.tensor([9, 4, -100, 9, 4, 7, 9])


def test_rare_classes_and_places_without_a_label_are_left_out() -> None:
    states = torch.arange(14.0).view(2, 7, 1)
    found = labelled(states, LABELS, least=2)
    assert found.classes.tolist() == [4, 9]
    assert found.classes[found.places].tolist() == [9, 4, 9, 4, 9]
    assert {k: x.flatten().tolist() for k, x in found.points()} == {0: [0, 1, 3, 4, 6], 1: [7, 8, 10, 11, 13]}
    assert labelled(states, LABELS).classes.tolist() == [4, 7, 9]


@pytest.mark.parametrize(
    "labels, least, says",
    [
        (LABELS, 3, "1 of 3 classes have 3 states or more; expected two"),
        (torch.full((7,), -100), 1, "no labels"),
        (torch.zeros(7).long(), 1, "1 of 1 classes have 1 states or more"),
        (LABELS, 0, "least=0"),
    ],
)
def test_fewer_than_two_classes(labels: torch.Tensor, least: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        labelled(torch.zeros(2, 7, 1), labels, least)


def test_the_point_of_states_that_are_not_finite_is_named() -> None:
    states = torch.zeros(3, 7, 2)
    states[2, 3] = torch.nan
    states[1, 2] = torch.inf  # no class, no matter
    points = labelled(states, LABELS).points()
    assert next(points)[0] == 0
    assert next(points)[0] == 1
    with pytest.raises(UserError, match="1 of 6 states at point 2 are not finite"):
        next(points)
