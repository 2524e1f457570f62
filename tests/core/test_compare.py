"""Two surveys side by side: two models on the same data, or one model on two data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import run
from zoo import llama, token_ids

import layerwright as lw
from layerwright.core.compare import differences
from layerwright.core.reduce import Reducer

ONLY = ["residual_contribution", "gradient_spectrum"]


def louder(scale: float = 1.02) -> Any:
    model = llama()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("o_proj.weight"):
                p.mul_(scale)
    return model


def test_a_small_difference_shows_in_pairs_though_intervals_overlap() -> None:
    data = {"input_ids": token_ids(12, 9)}
    survey = lw.survey(llama(), data, only=ONLY, against=louder())
    frame = survey.comparison["residual_contribution"]
    row = frame[(frame.part == "attention") & (frame.block == 0)].iloc[0]
    assert row.low <= row.difference <= row.high < 0
    assert row.apart
    one, other = (x["residual_contribution"].set_index(["block", "part"]) for x in (survey, survey.against))
    assert one.loc[(0, "attention"), "high"] > other.loc[(0, "attention"), "low"]  # they overlap


def test_a_model_beside_itself_differs_nowhere() -> None:
    data = {"input_ids": token_ids(6, 9)}
    comparison = lw.survey(llama(), data, only=ONLY, against=llama()).comparison
    for frame in comparison.values():
        assert (frame["difference"] == 0).all()
        assert (frame["low"] == 0).all()
        assert not frame["apart"].any()


def test_the_same_model_on_other_data() -> None:
    one, two = token_ids(6, 9), token_ids(8, 9).flip(1)
    survey = lw.survey(llama(), {"input_ids": one}, only=ONLY, against_data={"input_ids": two})
    assert survey.against.data["sequences"] == 8
    alone = lw.survey(llama(), {"input_ids": two}, only=ONLY)
    frame = survey.comparison["gradient_spectrum"]
    expected = survey["gradient_spectrum"]["value"].to_numpy() - alone["gradient_spectrum"]["value"].to_numpy()
    np.testing.assert_allclose(frame["difference"], expected, atol=1e-9)
    assert (frame["low"] <= frame["difference"] + 1e-9).all()
    assert (frame["difference"] - 1e-9 <= frame["high"]).all()


def test_layers_are_not_mapped_between_other_tokens() -> None:
    """As many tokens of as many sequences are still not the same tokens."""
    one, two = token_ids(4, 9), token_ids(4, 9).flip(1)
    survey = lw.survey(llama(), {"input_ids": one}, only=["linear_maps", "similarity"], against_data={"input_ids": two})
    assert not {"linear_maps", "similarity"} & set(survey.tables)
    assert sum("expected the same data" in note for note in survey.notes) == 2
    same = lw.survey(llama(), {"input_ids": one}, only=["linear_maps", "similarity"], against=louder())
    assert {"linear_maps", "similarity"} <= set(same.tables)


def reduced(rows: torch.Tensor) -> Any:
    reducer = Reducer()
    for key, values in enumerate(rows):
        reducer.add((key,), values)
    reducer.close_batch(None)
    return reducer.finish()


def test_pairs_cancel_what_sequences_share_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 200, generator=generator) * 10
    a, b = reduced(base + 1.0), reduced(base + 0.1 * torch.randn(1, 200, generator=generator))
    low, high = differences({"x": a}, {"x": b}, 0)["x"][(0,)]
    assert 0.95 < low < 1.0 < high < 1.05
    c = reduced(base[:, :150])
    low, high = differences({"x": a}, {"x": c}, 0)["x"][(0,)]
    assert high - low > 3.0  # of two means over 10/√200 and 10/√150


def test_one_sequence_has_no_interval() -> None:
    one = reduced(torch.ones(2, 1))
    assert differences({"x": one}, {"x": one}, 0) == {"x": {}}


def test_on_the_command_line(tiny_folder: Path, text_file: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text, of other words and no meaning. " * 40)
    code, out, _ = run(
        capsys, "survey", tiny_folder, "--text", text_file, "--against-text", other, "--tier", "quick", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert f"Against {other}: this survey minus the other" in " ".join(out.split())
    assert (tmp_path / "out" / "comparison" / "residual_contribution.csv").exists()
    assert (tmp_path / "out" / "against" / "report.html").exists()


@pytest.mark.parametrize("data", ["nowhere.txt"])
def test_other_data_that_are_not_there(data: str, tiny_folder: Path, text_file: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "survey", tiny_folder, "--text", text_file, "--against-text", data)
    assert code == 2
    assert "no file or folder nowhere.txt" in err
