"""A survey by jobs gives the same bits whoever does them, and the numbers of the survey in one pass."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from zoo import ZOO, token_ids

import layerwright as lw
from layerwright.core import record, shares
from layerwright.core.errors import UserError

DATA = {"input_ids": token_ids(20, 10)}


def saved(folder: Path, name: str = "llama", scale: float = 1.0) -> Path:
    model, _, _ = ZOO[name]()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith("mlp.down_proj.weight")).mul_(scale)
    model.save_pretrained(folder)
    return folder


def assert_same(found: lw.Survey, expected: lw.Survey, exactly: bool) -> None:
    assert found.tables.keys() == expected.tables.keys()
    for name, table in expected.tables.items():
        rounding = {"check_exact": True} if exactly else {"rtol": 1e-4, "atol": 1e-5}
        pd.testing.assert_frame_equal(found[name], table, obj=name, **rounding)


def test_jobs_give_what_one_pass_gives(tmp_path: Path) -> None:
    model, _, _ = ZOO["llama"]()
    expected = lw.survey(model, DATA, seed=3)
    found = lw.survey(model, DATA, seed=3, jobs="serial")
    assert_same(found, expected, exactly=False)
    assert (found.data["sequences"], found.data["tokens"]) == (20, 200)
    assert [c.name for c in found.checks] == [c.name for c in expected.checks]
    assert all(c.passed for c in found.checks)


def test_deep_measures_by_jobs_are_those_of_one_pass_whatever_the_batches() -> None:
    model, _, _ = ZOO["llama"]()
    data = [{"input_ids": token_ids(n, 10, seed=n)} for n in (3, 4, 1, 2, 3)]
    assert_same(lw.survey(model, data, tier="deep", jobs="serial"), lw.survey(model, data, tier="deep"), exactly=False)


# A worker takes five seconds to begin; that two change nothing is tried with other jobs in test_jobs.py as well.
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_change_no_bit(workers: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    here = lw.survey(folder, DATA, jobs="serial")
    assert_same(lw.survey(folder, DATA, jobs=workers), here, exactly=True)


@pytest.mark.slow
def test_workers_that_are_sent_a_live_model_change_no_bit() -> None:
    model, _, _ = ZOO["llama"]()
    assert_same(lw.survey(model, DATA, jobs=2), lw.survey(model, DATA, jobs="serial"), exactly=True)


def test_a_stopped_survey_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, done = saved(tmp_path / "a"), []

    def counted(self: shares.Task, share: int, fails: int = 5) -> object:
        done.append(share)
        if share == fails and len(done) == fails + 1:
            raise KeyboardInterrupt
        return measure(self, share)

    measure = shares.Task.measure
    monkeypatch.setattr(shares.Task, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        lw.survey(folder, DATA, jobs="serial", out=tmp_path / "out")
    found = lw.survey(folder, DATA, jobs="serial", out=tmp_path / "out")
    assert done == [0, 1, 2, 3, 4, 5, *range(5, 10)]
    assert_same(found, lw.survey(folder, DATA, jobs="serial"), exactly=True)
    assert not (tmp_path / "out" / "jobs").exists()
    assert (tmp_path / "out" / "survey.json").exists()


def test_parts_of_long_batches_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = ZOO["qwen3"]()
    data = {
        "input_ids": token_ids(7, 12),
        "attention_mask": (torch.arange(12) < torch.tensor([12, 5, 9, 12, 3, 7, 12])[:, None]).long(),
    }
    expected = lw.survey(model, data)
    monkeypatch.setattr(shares, "SHARES", 3)
    assert_same(lw.survey(model, data, jobs="serial"), expected, exactly=False)


@pytest.mark.slow
def test_two_models_side_by_side(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", scale=3.0)
    found = lw.survey(a, DATA, against=b, jobs="serial", out=tmp_path / "out")
    assert found.against is not None
    assert_same(found, lw.survey(a, DATA, jobs="serial"), exactly=True)
    assert_same(found.against, lw.survey(b, DATA, jobs="serial"), exactly=True)
    frame = found.comparison["residual_contribution"]
    changed = frame[(frame["block"] == 0) & (frame["part"] == "mlp")].iloc[0]
    assert changed["difference"] == pytest.approx(changed["value"] - changed["against"])
    assert changed["apart"]
    assert not frame[(frame["block"] == 0) & (frame["part"] == "attention")].iloc[0]["apart"]
    read = pd.read_csv(tmp_path / "out" / "comparison" / "residual_contribution.csv")
    columns = ["block", "part", "value", "against", "difference", "low", "high", "apart"]
    assert list(read.columns) == columns
    assert (tmp_path / "out" / "against" / "survey.json").exists()


def test_without_jobs_models_are_surveyed_one_after_another(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", scale=3.0)
    walked = lw.survey(a, DATA, against=b, stream="always", tier="quick", out=tmp_path / "out")
    plain = lw.survey(a, DATA, against=b, tier="quick")
    assert walked.against is not None
    assert plain.against is not None
    assert_same(walked, plain, exactly=False)
    assert_same(walked.against, plain.against, exactly=False)


def test_a_walk_is_no_set_of_jobs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave one of them out"):
        lw.survey(saved(tmp_path / "a"), DATA, jobs=2, stream="always")


def test_a_failing_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ArithmeticError("no luck")

    monkeypatch.setattr(shares, "record_part", fails)
    assert record.record_part is not fails
    with pytest.raises(UserError, match=r"10 of 10 jobs failed \('model/0'.*no luck"):
        lw.survey(saved(tmp_path / "a"), DATA, jobs="serial", tier="quick")
