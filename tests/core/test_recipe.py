"""A tensor without numbers knows how to make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from layerwright.core.recipe import Recipe

STORED = {"a": torch.arange(12.0).reshape(4, 3), "b": torch.arange(12.0).reshape(4, 3) * -1, "c": torch.tensor([5, 6])}
WORK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "itself": lambda a, b: a,
    "joined": lambda a, b: torch.cat([a, b], dim=1),
    "stacked": lambda a, b: torch.stack((a, b)),
    "split": lambda a, b: a.chunk(2)[1],
    "split by sizes": lambda a, b: torch.split(a, [1, 3])[1],
    "turned": lambda a, b: a.T.contiguous(),
    "cut": lambda a, b: a[1:, None, 2],
    "converted": lambda a, b: b.to(torch.bfloat16),
    "converted and moved": lambda a, b: b.to(device="cpu", dtype=torch.float64),
    "named argument": lambda a, b: torch.cat(tensors=[b, a]),
    "of both, twice": lambda a, b: (torch.cat([a, b]).view(2, 4, 3).transpose(0, 1).reshape(8, 3) + 1)[::2],
    "seen as another": lambda a, b: a.view(torch.int32),
    "a parameter": lambda a, b: torch.nn.Parameter(a, requires_grad=False),
    "data of it": lambda a, b: a.data.detach(),
}


def recipes() -> tuple[Recipe, Recipe]:
    a, b = (Recipe.of(name, tuple(STORED[name].shape), STORED[name].dtype) for name in "ab")
    return a, b


@pytest.mark.parametrize("name", WORK)
def test_what_is_done_to_a_recipe_is_done_to_the_numbers(name: str) -> None:
    made, expected = WORK[name](*recipes()), WORK[name](STORED["a"], STORED["b"])
    assert isinstance(made, Recipe)
    assert made.is_meta
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    assert made.complete()
    found = made.make(STORED)
    assert not isinstance(found, Recipe)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_sources_are_those_that_are_needed() -> None:
    a, b = recipes()
    assert a.sources() == {"a"}
    assert torch.cat([a, torch.cat([b, a])]).sources() == {"a", "b"}
    assert torch.stack((a, b))[0].sources() == {"a", "b"}


def test_what_is_no_tensor_is_passed_on() -> None:
    a, _ = recipes()
    assert a.shape == (4, 3)
    assert a.numel() == 12
    assert a.is_floating_point()
    assert a.requires_grad_(False) is a
    assert a.complete()


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: a.mul_(2),
        lambda a, b: a.__setitem__(0, 1.0),
        lambda a, b: a.copy_(b),
        lambda a, b: a[1:].zero_(),
        lambda a, b: torch.add(a, b, out=a),
        lambda a, b: torch.nn.init.normal_(a),
    ],
)
def test_what_was_written_into_is_known_to_be_spoiled(write: Callable[[Tensor, Tensor], object]) -> None:
    a, b = recipes()
    made = torch.cat([a, b])
    write(a, b)
    assert not a.complete()
    assert not torch.cat([a, b]).complete()
    assert not made.complete(), "the numbers would be made of the stored ones"
    assert b.complete()
