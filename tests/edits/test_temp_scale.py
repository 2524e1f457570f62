from __future__ import annotations

import pandas as pd
import pytest
import torch
from inside import attention
from reshaping import prepared
from zoo import token_ids

from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.edits.temp_scale import temp_scale
from layerwright.measures.attention_filter import attention_filter


def frame(by_length: dict[int, float], heads: int = 2) -> pd.DataFrame:
    rows = [(0, head, n, "mean", value) for n, value in by_length.items() for head in range(heads)]
    rows += [(0, head, 0, "largest", 1.25) for head in range(heads)]
    return pd.DataFrame(rows, columns=["block", "head", "length", "quantity", "value"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_the_folded_model_attends_as_the_measure_foretells(name: str) -> None:
    """In the first block, which reads the same stream; in all blocks the gains are mostly higher."""
    stack, inputs = prepared(name)
    inputs = {"input_ids": token_ids(2, 12)}
    plan = temp_scale(frame({0: 0.4}), temperature=0.8)
    model, _ = apply(stack, plan, inputs)
    before, after = attention(stack.model, inputs), attention(model, inputs)
    foretold = attention_filter(before[0], temperature=0.8)
    for key, (gains, _) in attention_filter(after[0]).items():
        torch.testing.assert_close(gains, foretold[key][0], rtol=1e-4, atol=1e-6)
    means = [torch.stack([attention_filter(a)[0, 0, "mean"][0].mean() for a in x]).mean() for x in (before, after)]
    assert means[1] > means[0]


def test_the_reason_holds_the_measured_gains() -> None:
    plan = temp_scale(frame({0: 0.35, 16: 0.8, 64: 0.5}, heads=3))
    assert plan.steps == ({"fold": {"temperature": 0.9}},)
    assert "lets 0.35 of random differences between tokens through (mean over 3 heads) and 1.25 of those" in plan.why
    assert "0.8 among 16 tokens and 0.5 among 64: less of longer texts." in plan.why
    assert "little is to be won" in temp_scale(frame({0: 0.9, 16: 0.8, 64: 0.9})).why
    assert "among" not in temp_scale(frame({0: 0.9, 16: 0.8})).why


@pytest.mark.parametrize("tau", [0, -1, 1, 1.5, "warm", float("nan")])
def test_a_temperature_that_does_not_sharpen_is_refused(tau: object) -> None:
    with pytest.raises(UserError, match="got temperature"):
        temp_scale(frame({0: 0.5}), temperature=tau)  # type: ignore[arg-type]
