"""`lw train` end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import fails, run

import layerwright as lw
from layerwright.core.plan import Plan


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Forty files, no two alike."""
    folder = tmp_path / "prose"
    folder.mkdir()
    for k in range(40):
        (folder / f"{k}.txt").write_text(" ".join(f"{k} times {n} is {k * n}." for n in range(40)))
    return folder


def test_a_grown_model_learns_beside_its_base(tiny_folder: Path, prose: Path, tmp_path: Path, capsys: Any) -> None:
    lw.reshape(str(tiny_folder), Plan(({"insert": [1]},)), out=tmp_path / "grown", until="none")
    arguments = ("train", tmp_path / "grown", "--text", prose, "--steps", 6, "--batch", 4, "--length", 32, "--every", 3)
    code, out, _ = run(capsys, *arguments, "--teacher", tiny_folder, "--out", tmp_path / "trained", "--lr", 0.01)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "3", "6"]
    assert any(line.startswith("held-out loss") for line in lines)
    assert out.endswith(f"saved in {tmp_path / 'trained'}\n")
    document = json.loads((tmp_path / "trained" / "training.json").read_text())
    assert document["settings"]["steps"] == 6
    assert (tmp_path / "trained" / "train.html").exists()
    model, _, _ = lw.load_model(tmp_path / "trained")
    # The silent block has learned to speak.
    assert model.model.layers[2].mlp.down_proj.weight.any()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--steps", 0), "steps 0"),
        (("--steps", 5, "--lr", -1), "lr -1"),
        (("--steps", 5, "--teacher", "nowhere/at/all"), "no folder"),
        ((), "Missing option '--steps'"),
    ],
)
def test_bad_arguments_are_one_line(
    tiny_folder: Path, prose: Path, capsys: Any, arguments: tuple[object, ...], words: str
) -> None:
    assert words in fails(capsys, "train", tiny_folder, "--text", prose, "--length", 32, *arguments)
