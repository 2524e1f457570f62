"""The terminal's view of a ladder: a row a rung, the verdict in a line, within 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from layerwright.core.rungs.ladder import Ladder, Rung
from layerwright.report import ladder

PASSED = Rung(1, "structure", "passed", "3 blocks became 2, all run", "no fault", {"blocks": 2})
FAILED = Rung(2, "exactness", "failed", "block 1 [model.layers.1] does something else", "1e-05 × largest", {})
MEASURED = Rung(5, "drift", "measured", "cosine 0.9 in the end", "", {"cosine": [0.9]})
NOT_RUN = Rung(3, "decode", "not run", "rung 2 failed", "", {})


def shown(*rungs: Rung, width: int = 80) -> str:
    stream = io.StringIO()
    ladder.show(Ladder(rungs), Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_a_row_a_rung_with_measured_limit_and_verdict() -> None:
    lines = shown(PASSED, MEASURED).splitlines()
    assert lines[0].split() == ["rung", "measured", "limit", "verdict"]
    assert lines[1].split() == ["1", "structure", "3", "blocks", "became", "2,", "all", "run", "no", "fault", "passed"]
    assert lines[2].split() == ["5", "drift", "cosine", "0.9", "in", "the", "end", "measured"]
    assert lines[-1] == "1 rung passed, 1 measured without a limit."


def test_what_failed_is_said_again_at_the_end() -> None:
    out = shown(PASSED, FAILED, NOT_RUN)
    assert "rung 2 failed" in out
    assert (
        out.replace("\n", " ")
        .rstrip()
        .endswith("Failed at rung 2, exactness: block 1 [model.layers.1] does something else")
    )


def test_a_ladder_that_decided_nothing_says_so() -> None:
    assert "Nothing failed, and nothing was held to a limit." in shown(MEASURED, NOT_RUN)


def test_rungs_that_were_not_run_are_counted() -> None:
    assert shown(PASSED, PASSED, NOT_RUN).rstrip().endswith("2 rungs passed, 1 not run.")


def test_long_findings_are_broken_within_80_columns() -> None:
    names = "model.layers.2.mlp.up_proj.weight, " * 6
    long = Rung(4, "reload", "failed", f"9 weights are missing: {names}", "error 0", {})
    out = shown(PASSED, long)
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("up_proj") == 12  # in the table and at the end
    assert "passed" in out.splitlines()[1]
