"""Every measure on every model of the zoo: it runs, says what its numbers are, and leaves model and data alone."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from zoo import ZOO

import layerwright as lw
from layerwright.core.paper import BY_ID
from layerwright.core.registry import MEASURES
from layerwright.core.survey import Survey

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATISTICS = ("value", "low", "high", "p95", "max")


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Floating inputs in the model's dtype."""
    if isinstance(inputs, dict):
        return {name: cast(x, dtype) for name, x in inputs.items()}
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def snapshot(model: torch.nn.Module, inputs: Any) -> list[Tensor]:
    """Copies of all weights, buffers and inputs."""
    given = inputs.values() if isinstance(inputs, dict) else [inputs]
    return [x.detach().clone() for x in (*model.parameters(), *model.buffers(), *given)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ZOO)
def test_survey(name: str, dtype: str) -> None:
    model, inputs, expected = ZOO[name]()
    model, inputs = model.to(DTYPES[dtype]), cast(inputs, DTYPES[dtype])
    before = snapshot(model, inputs)
    survey = lw.survey(model, inputs, blocks=expected.blocks)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model, inputs), strict=True))
    assert survey.model["blocks"] == expected.path
    assert survey.model["dtype"] == dtype
    assert all(check.passed for check in survey.checks), survey.checks
    for table in survey.tables.values():
        check_table(table)
    check_rows(survey, expected.order, expected.roles)
    json.dumps(survey.to_dict(), allow_nan=False)
    unmeasured = set(survey.settings["measures"]) - set(survey.tables)
    assert unmeasured == {note.split(" could not be ")[0] for note in survey.notes if " could not be " in note}
    if expected.head == "token" and expected.causal:
        assert not unmeasured


def check_table(frame: pd.DataFrame) -> None:
    """Unit, definition, paper and range; numbers inside the range, and in order."""
    about = frame.attrs
    assert about["definition"]
    assert about["formula"]
    assert about["paper"]["arxiv"] in BY_ID
    assert list(frame.columns[: len(about["index"])]) == about["index"]
    assert not frame.duplicated(about["index"]).any()
    units = about["unit"] if isinstance(about["unit"], dict) else {None: about["unit"]}
    assert all(units.values())
    if "quantity" in about["index"] and isinstance(about["unit"], dict):
        assert set(frame["quantity"]) <= set(units)
    low, high = (
        math.inf * sign if bound is None else bound for sign, bound in zip((-1, 1), about["range"], strict=True)
    )
    for name in frame.columns.intersection(STATISTICS):
        values = frame[name].to_numpy(dtype=float)
        assert not np.isinf(values).any(), name
        inside = np.isnan(values) | ((values >= low - 1e-6) & (values <= high + 1e-6))
        assert inside.all(), (about["name"], name, values[~inside])
    if "tokens" in frame:
        slack = 1e-6 * (1 + frame["value"].abs())
        assert (frame["nonfinite"] == 0).all()
        assert (frame["tokens"] > 0).all()
        assert (frame["low"] <= frame["value"] + slack).all()
        assert (frame["value"] <= frame["high"] + slack).all()
        assert (frame["value"] <= frame["max"] + slack).all()
        assert (frame["p95"] <= frame["max"] + slack).all()
        assert (frame["std"] >= 0).all()


def check_rows(survey: Survey, order: tuple[int, ...], roles: tuple[str, ...]) -> None:
    """One row for each block application and part, each state, each pair."""
    depth = len(order)
    tables = survey.tables
    assert set(tables["residual_contribution"]["part"]) == {"block", *roles}
    blocks = tables["residual_contribution"].query("part == 'block'")["block"].tolist()
    assert blocks == tables["block_influence"]["block"].tolist() == list(range(depth))
    assert len(tables["angular_distance"]) == depth * (depth + 1) // 2
    assert tables["stream_scale"]["point"].tolist() == list(range(depth + 1))
    later = tables["skip_effect"].query("quantity == 'later'")
    assert len(later) == depth * (depth - 1) // 2
    assert (later["source"] < later["block"]).all()


def test_every_measure_is_met_somewhere_in_the_zoo() -> None:
    model, inputs, _ = ZOO["llama"]()
    assert set(lw.survey(model, inputs, tier="deep").tables) == set(MEASURES)


def test_a_survey_twice_gives_the_same_document() -> None:
    model, inputs, _ = ZOO["llama"]()
    documents = [lw.survey(model, inputs).to_dict() for _ in range(2)]
    for document in documents:
        document["settings"].pop("seconds")
    assert documents[0] == documents[1]
