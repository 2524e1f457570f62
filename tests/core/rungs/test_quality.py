"""What an edit costs in loss, held to a requirement or only measured."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from naive import forward, loss
from surgery import case, climb
from zoo import token_ids

from layerwright.core.errors import UserError
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.quality import check_tasks, quality

DOCUMENTS = [{"input_ids": token_ids(4, seed=5)}, {"input_ids": token_ids(2, seed=6)}]


def given(**more: Any) -> Case:
    return case((0, 2), documents=DOCUMENTS, **more)


def test_the_ratio_is_that_of_plain_calls() -> None:
    here = given()
    found = climb(quality, here)
    ids = torch.cat([d["input_ids"] for d in DOCUMENTS])
    before, after = (float(loss(forward(m, ids), ids)) for m in (here.before, here.after))
    assert found.verdict == "measured"
    assert found.numbers["before"] == pytest.approx(before, rel=1e-5)
    assert found.numbers["ratio"] == pytest.approx(after / before, rel=1e-5)
    assert found.numbers["low"] <= found.numbers["ratio"] <= found.numbers["high"]
    assert (found.numbers["documents"], found.numbers["tokens"]) == (6, 66)
    assert len(found.numbers["per_document"]["after"]) == 6
    assert "over 6 documents" in found.finding


def test_the_ratio_decides_and_not_its_interval() -> None:
    numbers = climb(quality, given()).numbers
    limits = [{"loss": {"max_ratio": numbers["ratio"] + slack}} for slack in (1e-6, -1e-6)]
    above, below = (climb(quality, given(requirements=limit)) for limit in limits)
    assert above.verdict == "passed"
    assert below.verdict == "failed"
    assert "the interval leaves both open" in below.finding
    assert below.limit.startswith("ratio ≤ ")


def test_a_loss_that_is_not_a_number_is_not_held() -> None:
    here = given(requirements={"loss": {"max_ratio": 1e9}})
    here.after.lm_head.weight.data[:] = torch.nan
    assert climb(quality, here).verdict == "failed"


def test_without_text_there_is_no_loss() -> None:
    assert climb(quality, case((0, 2))) == ("not run", "no text was given to measure the loss on", "", {})


def test_one_document_has_no_interval() -> None:
    found = climb(quality, case((0, 2), documents=[{"input_ids": token_ids(1)}]))
    assert found.finding.endswith("(1 document: no interval)")


# Tasks


def test_tasks_without_the_harness_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tasks arc_easy need lm-eval; install it with `pip install layerwright"):
        check_tasks(given(tasks=["arc_easy"]))


def test_tasks_are_asked_of_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Wrapped:
        def __init__(self, pretrained: Any, tokenizer: Any) -> None:
            self.model = pretrained

    def evaluate(model: Wrapped, tasks: list[str], **options: Any) -> dict[str, Any]:
        asked.append(model.model)
        scores = {"alias": "arc", "acc_stderr,none": 0.9, "acc,none": 0.25 * len(asked)}
        return {"results": dict.fromkeys(tasks, scores)}

    harness, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    harness.simple_evaluate, models.HFLM = evaluate, Wrapped  # type: ignore[attr-defined]
    harness.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", models)
    here = given(tasks=["arc_easy"], tokenizer="any")
    found = climb(quality, here)
    assert asked == [here.before, here.after]
    assert found.numbers["tasks"] == {"arc_easy": {"before": 0.25, "after": 0.5}}
    assert "arc_easy 0.250 → 0.500" in found.finding
    with pytest.raises(UserError, match="tasks need a tokenizer"):
        check_tasks(given(tasks=["arc_easy"]))
