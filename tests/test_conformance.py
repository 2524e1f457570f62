"""What every measure promises, on every architecture and in both precisions: a new measure is held to it as well."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, llama, token_ids

import layerwright
import layerwright.measures  # registers them, so that tests can be made of their names
from layerwright.core import table
from layerwright.core.paper import BY_ID
from layerwright.core.registry import TIERS, choose
from layerwright.core.survey import Survey
from layerwright.report import render

DTYPES = (torch.float32, torch.bfloat16)
# Models that the fast suite takes in half precision and those that it leaves out, as they are made like others that it
# takes: `make test-slow` takes all in both precisions.
HALF = ("gpt2", "mixtral", "bert", "vit", "mamba", "t5 decoder", "nn.Sequential")
LIKE_OTHERS = ("qwen3", "gemma2", "gpt-neox", "olmo2", "granite")
STATISTICS = ("value", "low", "high", "p95", "max")
ROUNDING = 1e-6


@dataclass(frozen=True, repr=False)
class Case:
    """A survey, and what the model and its inputs were before and after."""

    survey: Survey
    before: str
    after: str


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, dict):
        return {name: cast(x, dtype) for name, x in inputs.items()}
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def digest(model: nn.Module, inputs: Any) -> str:
    """SHA-256 of all weights, buffers and inputs, by name."""
    given = inputs if isinstance(inputs, dict) else {"input": inputs}
    sha = hashlib.sha256()
    for name, x in (model.state_dict() | given).items():
        if isinstance(x, Tensor):
            sha.update(f"{name} {x.dtype} {tuple(x.shape)} {x.requires_grad}".encode())
            sha.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module", autouse=True)
def few_replicates() -> Iterator[None]:
    """What is derived from tables is derived twenty times as seldom for its interval, of which any number will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "REPLICATES_OF_DERIVED", 10)
        yield


def fast(name: str, dtype: torch.dtype) -> bool:
    return name not in LIKE_OTHERS and (dtype is torch.bfloat16) == (name in HALF)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=() if fast(*case) else pytest.mark.slow) for case in product(ZOO, DTYPES)],
    ids=lambda p: f"{p[0]}-{str(p[1]).removeprefix('torch.')}",
)
def case(request: pytest.FixtureRequest, few_replicates: None) -> Case:
    name, dtype = request.param
    model, inputs, expected = ZOO[name]()
    model, inputs = model.to(dtype), cast(inputs, dtype)
    before = digest(model, inputs)
    survey = layerwright.survey(model, inputs, tier="deep", blocks=expected.blocks)
    return Case(survey, before, digest(model, inputs))


def test_every_measure_has_a_table_or_a_note(case: Case) -> None:
    for m in choose("deep"):
        named = [note for note in case.survey.notes if note.startswith(f"{m.name} could not be ")]
        assert (m.name in case.survey.tables) != bool(named), m.name


def test_every_table_says_what_it_holds(case: Case) -> None:
    for name, frame in case.survey.tables.items():
        about = frame.attrs
        assert about["name"] == name
        assert about["title"], name
        assert len(about["definition"]) > len(about["title"]), name
        assert about["formula"], name
        assert_units(frame)
        assert_paper(about["paper"])
        assert about["tier"] in TIERS, name


def assert_units(frame: pd.DataFrame) -> None:
    unit = frame.attrs["unit"]
    if isinstance(unit, str):
        assert unit
        assert "quantity" not in unit
    else:
        assert set(frame["quantity"]) <= set(unit)
        assert all(unit.values())


def assert_paper(paper: dict[str, Any]) -> None:
    """It is in the bibliography, and its address leads to it."""
    assert BY_ID[paper["arxiv"]].to_dict() == paper
    assert re.fullmatch(r"\d{4}\.\d{4,5}", paper["arxiv"])
    assert paper["url"] == f"https://arxiv.org/abs/{paper['arxiv']}"
    assert paper["title"]
    assert 1990 < paper["year"] < 2100


def test_rows_are_places_in_the_tower(case: Case) -> None:
    depth = case.survey.model["depth"]
    for name, frame in case.survey.tables.items():
        index = frame.attrs["index"]
        assert list(frame.columns[: len(index)]) == index, name
        assert not frame.duplicated(index).any(), name
        assert len(frame), name
        top = {"point": depth, "gap": depth}
        for column in {"block", "source", "point", "gap"} & set(index):
            assert frame[column].between(column == "gap", top.get(column, depth - 1)).all(), name


def test_numbers_are_in_their_range(case: Case) -> None:
    for name, frame in case.survey.tables.items():
        low, high = frame.attrs["range"]
        for column in set(STATISTICS) & set(frame.columns):
            numbers = frame[column].to_numpy(float)
            assert not np.isinf(numbers).any(), (name, column)
            known = numbers[~np.isnan(numbers)]
            assert column != "value" or len(known) or name == "effective_depth", name  # a threshold may stay uncrossed
            slack = ROUNDING * max(1.0, np.abs(known).max(initial=0.0))
            assert low is None or (known >= low - slack).all(), (name, column)
            assert high is None or (known <= high + slack).all(), (name, column)


def test_statistics_agree_with_each_other(case: Case) -> None:
    for name, frame in case.survey.tables.items():
        if "std" not in frame:
            continue
        slack = ROUNDING * (1 + frame[list(STATISTICS)].abs().max(axis=1))
        assert (frame["std"] >= 0).all(), name
        assert (frame["value"] <= frame["max"] + slack).all(), name
        assert (frame["p95"] <= frame["max"] + slack).all(), name
        # Three sequences: the percentiles reach to the resamples of one sequence alone, and the mean is between them.
        assert (frame["low"] <= frame["value"] + slack).all(), name
        assert (frame["high"] >= frame["value"] - slack).all(), name
        assert (frame["tokens"] > 0).all(), name
        assert (frame["tokens"] <= frame["tokens"].max()).all(), name
        assert (frame["nonfinite"] == 0).all(), name


def test_the_lens_at_the_top_is_the_model(case: Case) -> None:
    if "logit_lens" in case.survey.tables:
        frame = case.survey["logit_lens"]
        top = frame[frame["point"] == case.survey.model["depth"]].set_index("quantity")["value"]
        assert top["kl"] == pytest.approx(0, abs=1e-6)
        assert top["top5_overlap"] == top["top1_agreement"] == 1


def test_model_and_data_are_left_bit_for_bit(case: Case) -> None:
    assert case.before == case.after


def test_self_tests_pass(case: Case) -> None:
    checks = {c.name: c for c in case.survey.checks}
    assert {"h₀ + Σ updates = h_L", "blocks called again = forward pass"} <= set(checks)
    assert ("lens(h_L) = logits" in checks) == ("logit_lens" in case.survey.tables)
    for c in case.survey.checks:
        assert c.passed, f"{c.name}: {c.error} of {c.tolerance}"
        assert c.note


def test_the_document_is_strict_json_and_holds_everything(case: Case) -> None:
    document = json.loads(json.dumps(case.survey.to_dict(), allow_nan=False))
    assert list(document["tables"]) == list(case.survey.tables)
    for name, frame in case.survey.tables.items():
        assert document["tables"][name]["columns"] == list(frame.columns)
        assert len(document["tables"][name]["rows"]) == len(frame)
    assert [f["rule"] for f in document["findings"]] == [f.rule for f in case.survey.findings]


def test_the_report_shows_every_table(case: Case) -> None:
    page = " ".join(html.unescape(render(case.survey.to_dict())).split())
    missing = [name for name, frame in case.survey.tables.items() if frame.attrs["title"] not in page]
    assert not missing


# The same numbers however the work is divided


@pytest.fixture(scope="module")
def whole(few_replicates: None) -> Survey:
    return layerwright.survey(llama(), batches(4), tier="deep")


def batches(size: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids} for ids in token_ids(4, 20).split(size)]


def assert_same(a: pd.DataFrame, b: pd.DataFrame, rounding: float) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=rounding, atol=rounding)
    assert a.attrs == b.attrs


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_batch_split_changes_nothing(size: int, whole: Survey) -> None:
    split = layerwright.survey(llama(), batches(size), tier="deep")
    assert split.tables.keys() == whole.tables.keys()
    for name, frame in whole.tables.items():
        assert_same(split[name], frame, 2e-5)
    assert split.data["sequences"] == whole.data["sequences"] == 4
    assert split.data["digest"] == whole.data["digest"]


def chosen() -> list[str]:
    return [m.name for m in choose("deep")]


@pytest.mark.parametrize("name", chosen())
def test_a_measure_alone_gives_what_it_gives_among_others(name: str, whole: Survey) -> None:
    alone = layerwright.survey(llama(), batches(4), only=[name])
    assert name in alone.tables
    assert_same(alone[name], whole[name], 0)


def test_the_order_of_the_measures_changes_nothing(whole: Survey) -> None:
    backwards = layerwright.survey(llama(), batches(4), only=chosen()[::-1])
    assert backwards.tables.keys() == whole.tables.keys()
    for name, frame in whole.tables.items():
        assert_same(backwards[name], frame, 0)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(whole: Survey) -> None:
    again, other = (layerwright.survey(llama(), batches(4), tier="deep", seed=seed) for seed in (0, 1))
    for name, frame in whole.tables.items():
        assert_same(again[name], frame, 0)
    assert not other["jacobian_identity"].equals(whole["jacobian_identity"])
    pd.testing.assert_series_equal(other["stream_scale"]["value"], whole["stream_scale"]["value"])
