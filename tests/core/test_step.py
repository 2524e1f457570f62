"""What steps declare to preserve, and that the ladder holds them to it."""

from __future__ import annotations

from typing import Any

import pytest
from reshaping import prepared

import layerwright as lw
from layerwright.core.plan import Plan
from layerwright.core.steps import STEPS, preserved_by
from layerwright.core.steps.step import BY_OPTIONS, PRESERVING

DECLARED = [
    ({"insert": [0]}, "exact"),
    ({"drop": [0]}, "none"),
    ({"fold": {"norms": True}}, "exact"),
    ({"fold": {"layernorm_scaling": True}}, "none"),
    ({"grow": {"depth": 2, "by": "zero"}}, "exact"),
    ({"grow": 2}, "none"),
    ({"grow": {"width": 2}}, "exact"),
    ({"grow": {"width": 2, "by": "zero"}}, "approximate"),
    ({"grow": {"depth": 2, "width": 2, "by": "zero"}}, "approximate"),
    ({"grow": {"depth": 2, "width": 2, "by": "direct"}}, "none"),
]


@pytest.mark.parametrize("step, kept", DECLARED)
def test_what_a_step_preserves_may_depend_on_its_options(step: dict[str, Any], kept: str) -> None:
    assert preserved_by(step) == kept


def test_every_step_declares_something() -> None:
    assert {s.keeps for s in STEPS.values()} <= {*PRESERVING, BY_OPTIONS}


@pytest.mark.parametrize("step", [step for step, kept in DECLARED if kept == "exact"])
def test_the_ladder_holds_exact_options_to_their_word(step: dict[str, Any]) -> None:
    stack, inputs = prepared("llama")
    _, report = lw.reshape(stack.model, Plan((step,)), inputs, until="exactness")
    assert report.ladder["exactness"].verdict == "passed", report.ladder.lines()
