"""Arguments with open places are filled again as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layerwright.core.calls import Extra, alike, beside, exchanged, extras_in, leave_open, put_in, structure
from layerwright.core.errors import UserError

X, BIAS, MASK = torch.ones(2, 3), torch.full((1, 3), 2.0), torch.full((3,), 3.0)


def test_a_call_is_put_together_again() -> None:
    output = structure((torch.zeros(2, 3), BIAS, {"again": MASK}))
    assert [x is y for x, y in zip(beside(output), (BIAS, MASK), strict=True)] == [True, True]
    extras = {id(BIAS): Extra(0, 0), id(MASK): Extra(0, 1)}
    args: Any = (X, {"bias": BIAS, "more": (MASK, None, 3)}, X.clone(), torch.zeros(1))
    left = leave_open(args, X, extras)
    assert extras_in(left) == {Extra(0, 0), Extra(0, 1)}
    other = exchanged(output, lambda x: -x)
    state = torch.full((2, 3), 7.0)
    first, named, again, kept = put_in(left, state, [other])
    assert first is state
    assert again is state, "what holds the same numbers as the stream is the stream"
    assert torch.equal(named["bias"], -BIAS)
    assert torch.equal(named["more"][0], -MASK)
    assert named["more"][1:] == (None, 3)
    assert kept is args[3]


def test_a_structure_takes_a_state() -> None:
    assert put_in(structure(X), BIAS) is BIAS
    assert put_in(structure((X, None)), BIAS) == (BIAS, None)
    for output in ({"hidden": X}, None, 3):
        with pytest.raises(UserError, match="expected a tensor or a tuple that starts with one"):
            structure(output)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        (X, X.clone(), True),
        (X, X + 1, False),
        (torch.tensor(torch.nan), torch.tensor(torch.nan), True),
        ((X, {"a": None}), (X.clone(), {"a": None}), True),
        ((X,), (X, X), False),
        ({"a": X}, {"b": X}, False),
        (Extra(0, 1), Extra(0, 1), True),
        (Extra(0, 1), Extra(0, 2), False),
        (Extra(0, 1), X, False),
        (X, 1.0, False),
        (None, X, False),
    ],
)
def test_what_is_alike(a: Any, b: Any, expected: bool) -> None:
    assert alike(a, b) is expected
    assert alike(b, a) is expected


def test_shapes_of_what_is_exchanged_are_kept() -> None:
    pair: tuple[Any, Tensor] = (structure((X, BIAS))[0], BIAS)
    assert exchanged(pair, torch.zeros_like)[1].shape == BIAS.shape
