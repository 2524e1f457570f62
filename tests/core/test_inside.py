"""Measures of what blocks compute inside give the same, whatever the engine, the batches and the precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from inside import padded
from naive import tables
from thinned import thinned
from walking import asked, assert_same_answer, data_for, hurry
from zoo import ZOO, gpt2, llama, token_ids

import layerwright as lw
from layerwright.core import engine, inside

NAMES = ("attention_filter", "activation_sparsity", "high_frequency")


@pytest.mark.parametrize(
    "name", thinned(2, ["llama", "gpt2", "mixtral", "bert", "t5 decoder", "albert", "vit", "gemma2"])
)
def test_a_model_taken_block_by_block_gives_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    model, inputs, expected = ZOO[name]()
    model.save_pretrained(tmp_path / "model")
    data = data_for(model, inputs)
    whole = engine.in_memory(asked(tmp_path / "model", data, only=NAMES, blocks=expected.blocks))
    walked = engine.by_walk(asked(tmp_path / "model", data, only=NAMES, blocks=expected.blocks, out=tmp_path / "out"))
    assert_same_answer(walked, whole, 0.0)
    found = whole.recording.tables
    assert set(found) == set(NAMES) - ({"activation_sparsity"} if name == "mixtral" else set())


@pytest.mark.parametrize("size", [1, 2])
def test_the_batch_split_changes_nothing(size: int) -> None:
    for make in (llama, gpt2):
        inputs = padded(token_ids(4, 20), [20, 20, 9, 4])
        whole, parts = (tables(make(), inputs, *NAMES, batch=n) for n in (None, size))
        for name in NAMES:
            pd.testing.assert_frame_equal(parts[name], whole[name], rtol=2e-5, atol=2e-5)


def test_lengths_and_errors_are_options_and_rows_are_where_sequences_are_long_enough() -> None:
    inputs = padded(token_ids(4, 20), [20, 20, 9, 4])
    options = {"attention_filter": {"lengths": (4, 9, 30)}, "activation_sparsity": {"targets": (0.3,)}}
    found = tables(llama(), inputs, *NAMES, options=options)
    gains = found["attention_filter"]
    counts = gains[gains["quantity"] == "largest"].groupby("length")["tokens"].unique().map(list).to_dict()
    assert counts == {0: [4], 4: [4], 9: [3]}
    assert set(found["activation_sparsity"]["cett"]) == {0.0, 0.3}
    shares = found["high_frequency"]
    assert shares.groupby("length")["tokens"].unique().map(list).to_dict() == {0: [53], 16: [32]}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_first_sequences_of_the_data_are_measured(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"input_ids": token_ids(5, 12)}
    first = tables(llama(), {"input_ids": inputs["input_ids"][:2]}, *NAMES[:2])
    monkeypatch.setattr(inside, "_SEQUENCES", 2)
    found = tables(llama(), inputs, *NAMES[:2], batch=size)
    for name in NAMES[:2]:
        assert set(found[name]["tokens"]) == {2}
        pd.testing.assert_frame_equal(found[name], first[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["mamba", "resnet", "nn.Sequential"])
def test_a_model_without_attention_says_so(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    survey = lw.survey(model, inputs, only=NAMES, blocks=expected.blocks)
    assert any("attention_filter could not be measured" in note for note in survey.notes)
    assert "high_frequency" in survey.tables


def test_a_block_with_nan_is_named_and_the_others_are_measured() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight[0, 0] = torch.nan
    survey = lw.survey(model, {"input_ids": token_ids()}, only=NAMES)
    frame = survey["attention_filter"]
    assert (frame[frame["block"] == 2]["nonfinite"] > 0).any()
    assert (frame[frame["block"] < 2]["nonfinite"] == 0).all()
    assert any("attention_filter" in note and "block 2" in note for note in survey.notes)


def close(a: Any, b: Any) -> bool:
    return bool((a - b).abs().max() < 0.05)


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_half_precision_is_near(make: Any) -> None:
    inputs = {"input_ids": token_ids(3, 20)}
    one, other = tables(make(), inputs, *NAMES), tables(make().to(torch.bfloat16), inputs, *NAMES)
    for name in NAMES:
        assert close(one[name]["value"], other[name]["value"]), name
