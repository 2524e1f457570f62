from __future__ import annotations

import pytest
from zoo import gpt2, token_ids

from layerwright.core.errors import UserError
from layerwright.core.planner import plan_with
from layerwright.core.stack import Stack
from layerwright.edits.recursive import recursive

SHAPES = [[(20, 30), (30, 20)]] * 6  # 1,200 numbers a block, of a model of 8,000


def test_half_the_blocks_unless_asked_otherwise() -> None:
    plan = recursive(8000, 7800, 6, SHAPES)
    assert plan.steps == ({"recurse": {"unique": 3, "init": "stepwise", "rank": 0}},)
    assert plan.why == (
        "3 unique blocks run 2 times leave 4,400 of 8,000 parameters (55%); stepwise is the best start published "
        "without corrections; the blocks hold 98% of the model."
    )
    assert recursive(8000, 7800, 5, SHAPES[:5]).steps[0]["recurse"]["unique"] == 1


def test_corrections_are_counted_and_start_from_the_average() -> None:
    plan = recursive(8000, 7800, 6, SHAPES, unique=2, rank=4)
    assert plan.steps == ({"recurse": {"unique": 2, "init": "average", "rank": 4}},)
    # Saved: 4 blocks of 1,200. Added: 6 depths × rank 4 × (50 + 50).
    assert "leave 5,600 of 8,000 parameters" in plan.why
    assert "2,400 of them in corrections of rank 4" in plan.why


def test_another_start_is_taken_and_said_to_be_another() -> None:
    plan = recursive(8000, 7800, 6, SHAPES, unique=2, init="lower")
    assert plan.steps[0]["recurse"]["init"] == "lower"
    assert "not the best start published without corrections: stepwise is" in plan.why


def test_parameters_are_those_of_the_model_that_shares() -> None:
    model, inputs = gpt2(num_hidden_layers=4), {"input_ids": token_ids()}
    plan = plan_with("recursive", Stack.find(model, inputs), options={"unique": 2})
    shared = sum(p.numel() for p in model.transformer.h[0].parameters() if p.ndim == 2)
    total = sum(p.numel() for p in model.parameters())
    assert f"leave {total - 2 * shared:,} of {total:,} parameters" in plan.why


@pytest.mark.parametrize(
    "options, words",
    [
        ({"unique": 4}, r"a divisor of the depth 6 below it: \[1, 2, 3\]"),
        ({"unique": 6}, "divisor"),
        ({"unique": 0}, "got unique 0"),
        ({"rank": -1}, "got rank -1"),
        ({"init": "middle"}, "average or stepwise or lower"),
        ({"rank": 12}, "expected a lower rank"),
    ],
)
def test_bad_input(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        recursive(8000, 7800, 6, SHAPES, **options)


def test_blocks_that_cannot_share() -> None:
    with pytest.raises(UserError, match="blocks 0 and 1 have matrices of different shapes"):
        recursive(8000, 7800, 2, [[(20, 30)], [(20, 40)]])
    with pytest.raises(UserError, match="recursive already"):
        recursive(8000, 7800, 6, SHAPES[:2])
    with pytest.raises(UserError, match="nothing to share"):
        recursive(8000, 7800, 1, SHAPES[:1])
