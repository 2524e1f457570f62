"""Which engine surveys a model: the one that is asked for, or the one that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from walking import hurry
from zoo import llama, token_ids

from layerwright import verbs
from layerwright.core import engine
from layerwright.core.errors import UserError
from layerwright.core.survey import Survey
from layerwright.verbs import measuring

IDS = {"input_ids": token_ids()}
WALKED = "measured block by block (--stream): one block's weights in memory at a time"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def survey(model: Any, **more: Any) -> tuple[Survey, list[str]]:
    said: list[str] = []
    return verbs.survey(model, IDS, tier="quick", say=said.append, **more), said


def test_both_engines_give_the_same_survey(folder: Path, tmp_path: Path) -> None:
    walk, said = survey(folder, stream="always", out=tmp_path / "a")
    memory, nothing = survey(folder, stream="never", out=tmp_path / "b")
    assert len(said) == 1
    assert said[0].startswith("block by block: reads")
    assert nothing == []
    first, second = (walk.to_dict(), memory.to_dict())
    assert WALKED in first["model"]["notes"]
    for document in (first, second):
        for name in ("checks", "settings"):
            del document[name]
        document["model"] = {key: value for key, value in document["model"].items() if key != "notes"}
    assert first == second
    names = ["report.html", "survey.json", "tables"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for file in (tmp_path / "b" / "tables").iterdir():
        assert (tmp_path / "a" / "tables" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype, factor", [(None, 1.0), ("bfloat16", 0.5), ("float64", 2.0)])
def test_what_fits_is_loaded_and_what_does_not_is_walked(
    dtype: str | None, factor: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = factor * 4 * sum(p.numel() for p in llama().parameters())
    for free, walks in ((weights / 0.75 - 4, True), (weights / 0.75 + 4, False)):
        monkeypatch.setattr(engine, "available_memory", lambda free=free: int(free))
        result, said = survey(folder, dtype=dtype)
        assert (WALKED in result.model["notes"]) is walks
        assert any("is free: surveying block by block" in line for line in said) is walks


def test_a_live_model_is_in_memory_already() -> None:
    with pytest.raises(UserError, match="got a live model to stream; only a model in a folder"):
        survey(llama(), stream="always")
    assert survey(llama(), stream="auto")[1] == []


def test_an_engine_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match="got stream 'sometimes'; expected one of auto, always, never"):
        survey(folder, stream="sometimes")


def test_a_half_finished_walk_is_taken_up_by_the_next_survey(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "up" and done == 2:
            raise KeyboardInterrupt

    expected, _ = survey(folder, stream="always")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "bars", lambda show: _Bars(interrupt))
        with pytest.raises(KeyboardInterrupt):
            survey(folder, stream="always", out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["walk"]
    settings = json.loads((tmp_path / "out" / "walk" / "run.json").read_text())
    assert settings["threads"] == torch.get_num_threads()
    assert {"device", "layerwright", "torch", "transformers"} <= settings.keys()
    found, _ = survey(folder, stream="always", out=tmp_path / "out")
    for name, frame in expected.tables.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True)
    assert not (tmp_path / "out" / "walk").exists()


class _Bars:
    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def __enter__(self) -> Any:
        return self._progress

    def __exit__(self, *args: object) -> None:
        return None
