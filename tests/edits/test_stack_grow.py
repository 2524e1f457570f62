from __future__ import annotations

import pytest
from zoo import llama, token_ids

from layerwright.core.errors import UserError
from layerwright.core.planner import plan_with
from layerwright.core.stack import Stack
from layerwright.edits.stack_grow import growth_timing, stack_grow


@pytest.mark.parametrize("parameters, tokens, due", [(8e9, 15e12, 6.58e9), (7e9, 2e12, 11.11e9), (70e9, 2e12, 42.48e9)])
def test_the_published_rows(parameters: float, tokens: float, due: float) -> None:
    assert growth_timing(parameters, tokens) == pytest.approx(due, rel=1e-3)


def test_a_larger_model_is_grown_later_and_more_tokens_sooner() -> None:
    assert growth_timing(2e9, 1e12) > growth_timing(1e9, 1e12)
    assert growth_timing(1e9, 2e12) < growth_timing(1e9, 1e12)


def test_only_the_blocks_grow() -> None:
    plan = stack_grow(2_000_000_000, 1_500_000_000, 6, times=4, tokens=2e12)
    assert plan.steps == ({"stack": {"times": 4}},)
    assert plan.order(6) == (0, 1, 2, 3, 4, 5) * 4
    assert "24 blocks and 6.5B parameters" in plan.why
    assert f"{growth_timing(6.5e9, 2e12) / 1e9:.3g}B" in plan.why


@pytest.mark.parametrize(
    "trained, words", [(1e9, "train it longer first"), (1e10, "the time has come"), (1e11, "late")]
)
def test_whether_it_is_the_time(trained: float, words: str) -> None:
    assert words in stack_grow(2_000_000_000, 1_500_000_000, 6, tokens=2e12, trained=trained).why


def test_where_the_guideline_says_nothing_it_says_so() -> None:
    """Extrapolated to a model of a million parameters, it asks for more tokens than there are to train on."""
    assert growth_timing(1e6, 2e7) > 2e7
    assert "says nothing here" in stack_grow(300_000, 250_000, 3).why


def test_parameters_are_counted() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    plan = plan_with("stack_grow", Stack.find(model, inputs), options={"times": 2})
    grown = sum(p.numel() for p in model.parameters()) + sum(p.numel() for p in model.model.layers.parameters())
    assert f"6 blocks and {grown / 1e3:.3g}k parameters" in plan.why


@pytest.mark.parametrize(
    "options, words",
    [
        ({"times": 1}, "got times 1"),
        ({"times": 2.5}, "got times 2.5"),
        ({"tokens": 0}, "got tokens 0"),
        ({"tokens": 2e12, "trained": -1}, "got trained -1"),
        ({"tokens": 2e12, "trained": 3e12}, "expected fewer than in all"),
    ],
)
def test_bad_input(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        stack_grow(2_000_000_000, 1_500_000_000, 6, **options)
