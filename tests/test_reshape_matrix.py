"""Every kind of edit on every family of models: exact, decoding as in full, loading as plain files."""

from __future__ import annotations

from typing import Any

import pytest
from reshaping import deep_llama, prepared
from thinned import thinned

import layerwright as lw
from layerwright.core.plan import Plan

MODELS = ["llama", "gpt2", "opt", "qwen3", "gemma2", "gemma3", "gpt-neox", "mixtral", "phi", "bert", "vit"]
PLANS: dict[str, tuple[dict[str, Any], ...]] = {
    "drop": ({"drop": [1]},),
    "repeat": ({"order": [0, 1, 1, 2]},),
    "swap": ({"order": [0, 2, 1]},),
    "stack": ({"stack": 2},),
    "insert": ({"insert": [0, 2]},),
    "recurse": ({"recurse": {"unique": 1, "rank": 24}},),
    "parallel": ({"order": [0, 1, 1, 2]}, {"parallel": 2}),
}
# Blocks that norm the stream have no identity; only heads with a size of their own stand beside each other.
REFUSED = {("bert", "insert"), *((name, "parallel") for name in MODELS if name != "llama")}
CASES = [(name, kind) for name in MODELS for kind in PLANS]


def climbs(name: str, kind: str, until: str) -> None:
    stack, inputs = prepared(name)
    plan = Plan(PLANS[kind])
    if (name, kind) in REFUSED:
        with pytest.raises(lw.UserError):
            lw.reshape(stack.model, plan, inputs, until=until)
        return
    _, report = lw.reshape(stack.model, plan, inputs, until=until)
    ladder = report.ladder
    assert ladder is not None
    assert ladder.ok, ladder.lines()
    if kind not in ("recurse", "insert"):
        assert ladder["exactness"].verdict == "passed"
    for number in ladder["decode"].numbers.values():
        if isinstance(number, dict) and "error" in number:
            assert number["error"] <= 1e-5 * max(1.0, number.get("scale", 1.0))


@pytest.mark.parametrize("name, kind", thinned(6, MODELS, PLANS))
def test_rungs_1_to_3(name: str, kind: str) -> None:
    climbs(name, kind, "decode")


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", [case for case in CASES if case not in REFUSED])
def test_rungs_1_to_4(name: str, kind: str) -> None:
    climbs(name, kind, "reload")


@pytest.mark.parametrize("size", [2, 4])
def test_grouped_heads_stand_side_by_side(size: int) -> None:
    stack, inputs = deep_llama()
    _, report = lw.reshape(stack.model, Plan(({"parallel": size},)), inputs, until="decode")
    assert report.ok, report.ladder.lines()
    assert report.ladder["exactness"].verdict == "passed"
