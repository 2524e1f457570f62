"""The examples run, and what they measure is what they predict."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    """What the script leaves behind."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_predict_then_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = run("predict_then_train.py", monkeypatch, "--quick", "--out", str(tmp_path))
    pictures = {file.stem: file.read_text() for file in tmp_path.iterdir()}
    assert set(pictures) == {"deep_linear", "wide_training", "random_features", "criticality"}
    for name, picture in pictures.items():
        assert picture.startswith("<svg")
        assert picture.count("stroke-dasharray") == 2, f"{name}: two predictions, beside two measurements"
    # Of the second theory: the mean over networks lies within three standard errors, and what a width leaves.
    errors, mean, deviation = (np.asarray(left[part]) for part in ("errors", "mean", "deviation"))
    slack = 3 * deviation / len(errors) ** 0.5 + 10 / 128
    assert (np.abs(errors.mean(0) - mean) < slack).all()
