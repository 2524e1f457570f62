"""A plan must beat random plans of the same budget."""

from __future__ import annotations

from typing import Any

import pytest
from naive import forward, loss
from surgery import case, climb, reordered
from torch import nn
from zoo import llama, token_ids

from layerwright.core.rungs.control import control

DOCUMENTS = [{"input_ids": token_ids(6, seed=5)}]
ORDERS = [(1, 2), (0, 1), (0, 2)]


def losses_of(base: nn.Module, orders: list[tuple[int, ...]]) -> list[float]:
    ids = DOCUMENTS[0]["input_ids"]
    return [float(loss(forward(reordered(base, order), ids), ids)) for order in orders]


def found(order: tuple[int, ...], **more: Any) -> Any:
    base = llama().eval()
    given = case(order, base, documents=DOCUMENTS, control=lambda seed: reordered(base, ORDERS[seed % 3]), **more)
    return climb(control, given)


def test_better_ones_are_counted_and_the_median_is_that_of_plain_calls() -> None:
    values = losses_of(llama().eval(), ORDERS)
    ranked = sorted(zip(values, ORDERS, strict=True))
    for place, (value, order) in enumerate(ranked):
        numbers = found(order).numbers
        assert numbers["losses"] == pytest.approx(values, rel=1e-5)
        assert numbers["better"] == place + 1  # itself among them
        assert numbers["median"] == pytest.approx(ranked[1][0], rel=1e-5)
        assert numbers["ratio"] == pytest.approx(value / ranked[1][0], rel=1e-5)


def test_only_a_plan_below_the_median_passes() -> None:
    ranked = [order for _, order in sorted(zip(losses_of(llama().eval(), ORDERS), ORDERS, strict=True))]
    verdicts = [found(order, requirements={"control": {"plans": 3}}).verdict for order in ranked]
    assert verdicts == ["passed", "failed", "failed"]
    assert found(ranked[0], requirements={"control": {"plans": 3}}).limit == "loss < median of random plans"


def test_without_a_requirement_it_is_measured() -> None:
    assert found((0, 2)).verdict == "measured"
    assert found((0, 2)).numbers["plans"] == 3


def test_the_plan_says_how_many_and_the_seed_which() -> None:
    numbers = found((0, 2), requirements={"control": {"plans": 4}}, seed=1).numbers
    values = losses_of(llama().eval(), [ORDERS[1], ORDERS[2], ORDERS[0], ORDERS[1]])
    assert numbers["losses"] == pytest.approx(values, rel=1e-5)


def test_a_control_of_another_depth_counts_too() -> None:
    base = llama().eval()
    given = case((0, 2), base, documents=DOCUMENTS, control=lambda seed: reordered(base, (0, 1, 2, 2)))
    assert climb(control, given).numbers["plans"] == 3


def test_what_is_missing_is_said() -> None:
    assert climb(control, case((0, 2))).finding == "nobody makes random plans of the same budget here"
    given = case((0, 2), control=lambda seed: llama())
    assert climb(control, given).finding == "no text was given to measure the loss on"
