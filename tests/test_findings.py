"""Each rule speaks on its own side of its threshold, with numbers, and is silent on the other."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from naive import blocks_of
from torch import nn
from zoo import llama, token_ids

import layerwright as lw
from layerwright import findings
from layerwright.core.survey import Finding, Survey

DEPTH = 8


def survey(**tables: pd.DataFrame) -> Survey:
    return Survey({"name": "m", "depth": DEPTH}, {}, {}, tables)


def found(rule: str, **tables: pd.DataFrame) -> Finding | None:
    """What one rule says of these tables, checked for what every finding needs."""
    spoken = [f for f in findings.find(survey(**tables)) if f.rule == rule]
    assert len(spoken) <= 1
    for f in spoken:
        assert f.title
        assert f.advice
        assert f.tone in ("act", "watch", "protect", "good")
        assert f.evidence
        assert all(re.search(r"\d", line) for line in f.evidence)
        assert f.blocks
        assert all(0 <= b < DEPTH for b in f.blocks)
        if f.plan is not None:
            assert 0 < len(f.plan.order(DEPTH)) < DEPTH
    return spoken[0] if spoken else None


def losses(rise: list[float], low: float = 0.0, high: float = 0.0) -> pd.DataFrame:
    x = np.array(rise)
    return pd.DataFrame(
        {"source": range(len(x)), "quantity": "loss_increase", "value": x, "low": x - low, "high": x + high}
    )


def lens(agreement: list[float], kl: list[float]) -> pd.DataFrame:
    rows = [("top1_agreement", agreement), ("kl", kl)]
    return pd.concat(
        pd.DataFrame({"point": range(DEPTH + 1), "quantity": q, "value": x, "low": x, "high": x}) for q, x in rows
    )


def contributions(largest: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"block": range(len(largest)), "part": "block", "value": 0.0, "max": largest})


def test_silence_without_tables_and_without_anything_to_say() -> None:
    assert findings.find(survey()) == []
    middling = losses([0.2] * DEPTH, low=0.16, high=0.1)  # neither surely cheap nor surely dear
    assert findings.find(survey(skip_output=middling, residual_contribution=contributions([0.3] * DEPTH))) == []


def test_those_that_call_for_action_come_first() -> None:
    tables = {
        "skip_output": losses([0.01, 3.0, *[0.1] * 6]),
        "jacobian_identity": pd.DataFrame({"block": range(DEPTH), "value": [1.0] * 4 + [0.1] * 4}),
        "residual_contribution": contributions([0.0] + [0.5] * 7),
    }
    tones = [f.tone for f in findings.find(survey(**tables))]
    assert tones == sorted(tones, key=["act", "watch", "protect", "good"].index)
    assert {"act", "watch", "protect"} <= set(tones)


def test_nonfinite() -> None:
    frame = pd.DataFrame({"point": range(DEPTH + 1), "value": 1.0, "nonfinite": [0] * 3 + [7] * (DEPTH - 2)})
    f = found("nonfinite", stream_scale=frame)
    assert f is not None
    assert f.blocks == [2]
    assert "7 tokens" in f.evidence[0]
    at_input = found("nonfinite", stream_scale=frame.assign(nonfinite=1))
    assert at_input is not None
    assert "input of the tower" in at_input.title
    assert found("nonfinite", stream_scale=frame.assign(nonfinite=0)) is None


def test_dead_blocks() -> None:
    f = found("dead_blocks", residual_contribution=contributions([0.5, 0.0, 0.5, findings.DEAD / 2, *[0.5] * 4]))
    assert f is not None
    assert f.blocks == [1, 3]
    assert f.plan is not None
    assert f.plan.order(DEPTH) == (0, 2, 4, 5, 6, 7)
    assert found("dead_blocks", residual_contribution=contributions([2 * findings.DEAD] * DEPTH)) is None


def test_a_tower_of_dead_blocks_has_no_plan() -> None:
    f = found("dead_blocks", residual_contribution=contributions([0.0] * DEPTH))
    assert f is not None
    assert f.blocks == list(range(DEPTH))
    assert f.plan is None


def test_expendable() -> None:
    f = found("expendable", skip_output=losses([1.0, 0.3, 0.04, 0.03, 0.02, 0.3, 0.3, 0.5]))
    assert f is not None
    assert f.blocks == [2, 3, 4]
    assert f.plan is not None
    assert f.plan.order(DEPTH) == (0, 1, 5, 6, 7)
    assert "0.09 nat/token" in f.advice


def test_expendable_plans_no_more_than_twice_the_small_loss() -> None:
    f = found("expendable", skip_output=losses([1.0, 1.0, *[0.8 * findings.SMALL_LOSS] * 6]))
    assert f is not None
    assert f.blocks == [2, 3, 4, 5, 6, 7]
    assert f.plan is not None
    assert len(f.plan.order(DEPTH)) == DEPTH - 2


def test_expendable_needs_the_whole_interval_below_the_threshold() -> None:
    cheap = [1.0, *[0.3] * 6, 0.5 * findings.SMALL_LOSS]
    assert found("expendable", skip_output=losses(cheap, high=findings.SMALL_LOSS)) is None
    assert found("expendable", skip_output=losses(cheap, high=0.1 * findings.SMALL_LOSS)) is not None
    # With one sequence there is no interval: the value itself decides.
    assert found("expendable", skip_output=losses(cheap).assign(high=math.nan)) is not None


def test_expendable_does_not_take_everything_away() -> None:
    assert found("expendable", skip_output=losses([0.0] * DEPTH)) is None


def test_undefined_losses_call_for_nothing() -> None:
    frame = losses([math.nan] * DEPTH)
    assert findings.find(survey(skip_output=frame)) == []


def test_keep() -> None:
    f = found("keep", skip_output=losses([5.0, *[0.1] * 6, 2 * findings.LARGE_LOSS], low=0.05))
    assert f is not None
    assert f.blocks == [0, 7]
    assert f.tone == "protect"
    assert found("keep", skip_output=losses([5.0] * DEPTH)) is None  # none stands out
    assert found("keep", skip_output=losses([0.9 * findings.LARGE_LOSS, *[0.01] * 7])) is None
    assert found("keep", skip_output=losses([5.0, *[0.1] * 7], low=5.0)) is None  # the interval is too wide


def test_all_count() -> None:
    f = found("all_count", skip_output=losses([0.3, 0.2, *[0.4] * 6], low=0.1))
    assert f is not None
    assert f.tone == "good"
    assert "block 1" in f.evidence[0]
    assert found("all_count", skip_output=losses([0.3, 0.5 * findings.SMALL_LOSS, *[0.4] * 6])) is None


def scale(rate: float) -> pd.DataFrame:
    return pd.DataFrame({"point": range(DEPTH + 1), "value": np.exp(rate * np.arange(DEPTH + 1))})


def test_growing_stream() -> None:
    f = found("growing_stream", stream_scale=scale(1.1 * findings.FAST_GROWTH).assign(nonfinite=0))
    assert f is not None
    assert min(f.blocks) >= DEPTH // 2
    assert found("growing_stream", stream_scale=scale(0.9 * findings.FAST_GROWTH).assign(nonfinite=0)) is None
    walk = pd.DataFrame({"point": range(13), "value": np.sqrt(1 + np.arange(13)), "nonfinite": 0})
    assert found("growing_stream", stream_scale=walk) is None


def test_the_last_state_does_not_make_a_stream_grow() -> None:
    flat = scale(0.0).assign(nonfinite=0)
    flat.loc[DEPTH, "value"] = 100.0
    assert found("growing_stream", stream_scale=flat) is None


def test_near_identities() -> None:
    def distances(upper: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"block": range(DEPTH), "value": [0.01] * 4 + upper})

    f = found("near_identities", jacobian_identity=distances([0.1, 0.9, 0.1, 0.9]))
    assert f is not None
    assert f.blocks == [4, 6]  # the lower half is another matter
    assert found("near_identities", jacobian_identity=distances([0.1, 0.9, 0.9, 0.9])) is None
    assert found("near_identities", jacobian_identity=distances([1.01 * findings.NEAR_IDENTITY] * 4)) is None


def effects(lower: float, upper: float, kind: str) -> pd.DataFrame:
    pairs = [(s, k) for s in range(DEPTH) for k in range(s + 1, DEPTH)]
    value = [lower if s < DEPTH // 2 else upper for s, _ in pairs]
    return pd.DataFrame(
        {"source": [s for s, _ in pairs], "block": [k for _, k in pairs], "quantity": kind, "value": value}
    )


def test_lower_half() -> None:
    both = pd.concat([effects(0.4, 0.1, "future"), effects(0.4, 0.4, "later")])
    f = found("lower_half", skip_effect=both)
    assert f is not None
    assert f.blocks == [4, 5, 6, 7]
    assert "later tokens" in f.title
    f = found("lower_half", skip_effect=effects(0.4, 0.1, "later"))
    assert f is not None
    assert "later blocks" in f.title
    assert found("lower_half", skip_effect=effects(0.4, 0.3, "future")) is None


def test_answer_ready() -> None:
    f = found("answer_ready", logit_lens=lens([0.1] * 5 + [0.95] * 4, [2.0] * 5 + [0.05] * 4))
    assert f is not None
    assert "by block 4" in f.title
    assert f.plan is not None
    assert f.plan.order(DEPTH) == (0, 1, 2, 3, 4)
    late = lens([0.1] * 7 + [0.95] * 2, [2.0] * 7 + [0.05] * 2)
    assert found("answer_ready", logit_lens=late) is None  # one block before the end is no early exit
    unsure = lens([0.1] * 5 + [0.95] * 4, [2.0] * 5 + [0.2] * 3 + [0.0])
    assert found("answer_ready", logit_lens=unsure) is None


def test_an_answer_that_is_ready_before_the_first_block_has_no_plan() -> None:
    f = found("answer_ready", logit_lens=lens([1.0] * 9, [0.0] * 9))
    assert f is not None
    assert "before the first block" in f.title
    assert f.plan is None


def test_answer_forms() -> None:
    rising = [0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
    f = found("answer_forms", logit_lens=lens(rising, [1.0] * 9))
    assert f is not None
    assert f.tone == "good"
    assert f.blocks == [5, 6, 7]
    assert found("answer_forms", logit_lens=lens([0.1] * 5 + [0.95] * 4, [1.0] * 9)) is None


@pytest.mark.parametrize("rule", findings.RULES, ids=lambda rule: rule.__name__)
def test_every_rule_is_documented_and_tested(rule) -> None:
    assert rule.__doc__
    assert f"test_{rule.__name__}" in globals()


def test_lists_of_blocks() -> None:
    assert findings._blocks([3]) == "block 3"
    assert findings._blocks([0, 3, 4, 5, 7]) == "blocks 0, 3–5 and 7"
    assert findings._blocks([0, 1]) == "blocks 0–1"


def test_of_a_real_survey_with_a_dead_block() -> None:
    model = llama(num_hidden_layers=4)
    for p in (blocks_of(model)[2].self_attn.o_proj.weight, blocks_of(model)[2].mlp.down_proj.weight):
        nn.init.zeros_(p)
    result = lw.survey(model, {"input_ids": token_ids()})
    (dead,) = (f for f in result.findings if f.rule == "dead_blocks")
    assert dead.plan is not None
    assert dead.plan.order(4) == (0, 1, 3)
    # What the plan promises: without the block the model answers the same.
    ids = token_ids(seed=7)
    with torch.no_grad():
        before = model.eval()(ids, use_cache=False).logits
        del model.model.layers[2]
        torch.testing.assert_close(model(ids, use_cache=False).logits, before)
