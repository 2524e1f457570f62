"""The terminal's view of a survey, also where numbers are missing, not finite, or fail a self-test."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from layerwright.core.recording import Check
from layerwright.core.survey import Finding, Survey
from layerwright.report import terminal

MODEL = {"name": "looped", "class": "Net", "blocks": "blocks", "depth": 4, "unique_depth": 2, "width": 8,
         "parameters": 1_234_567, "dtype": "float32", "order": [0, 1, 0, 1]}  # fmt: skip
DATA = {"source": "a.txt", "kind": "text", "sequences": 2, "tokens": 1000, "length": 500, "prefix": 1}


def skips(values: list[float]) -> pd.DataFrame:
    rows = [(source, "loss_increase", value) for source, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["source", "quantity", "value"])


def shown(**parts: object) -> str:
    stream = io.StringIO()
    survey = Survey(MODEL, DATA, {}, **({"tables": {}} | parts))
    terminal.show(survey, Console(file=stream, width=80, highlight=False))
    return stream.getvalue()


def test_a_block_a_line_and_a_bar_scaled_by_the_inner_blocks() -> None:
    out = shown(tables={"skip_output": skips([9.0, 0.5, 0.25, -0.1])})
    lines = [line.rstrip() for line in out.splitlines() if "(0)" in line or "(1)" in line or line[:5].strip().isdigit()]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert lines[0].endswith("9.000 █████████▶")
    assert lines[1].endswith("0.500 " + "█" * 10)
    assert lines[2].endswith("0.250 " + "█" * 5)
    assert lines[3].endswith("-0.100")
    assert "4 blocks (2 distinct)" in out
    assert "1.23 M parameters" in out.replace("\n", " ")
    assert "first 1 of each left out" in out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_marked(value: float) -> None:
    assert "not finite" in shown(tables={"skip_output": skips([1.0, value, 0.5, 0.5])})


def test_nothing_stands_out_and_no_files() -> None:
    out = shown()
    assert "Nothing stands out." in out
    assert "No files were written" in out


def test_findings_and_failed_checks() -> None:
    finding = Finding("rule", "Blocks 1–2 [hardly] matter", [1, 2], ["loss +0.01"], "Try without them.", "act")
    out = shown(findings=[finding], checks=[Check("h = Σ", 0.5, 0.1, False, "look at it")])
    assert "Blocks 1–2 [hardly] matter\n  - loss +0.01" in out
    assert "self-test failed: h = Σ, error 0.5 against 0.1" in out
    assert "Nothing stands out" not in out
