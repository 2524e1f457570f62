"""A plan is data: orders of blocks, in and out of YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerwright.core.errors import UserError
from layerwright.core.plan import Plan


def test_steps_are_done_in_turn() -> None:
    assert Plan(()).order(3) == (0, 1, 2)
    assert Plan(({"drop": [1]},)).order(4) == (0, 2, 3)
    assert Plan(({"order": [0, 1, 1, 2]},)).order(3) == (0, 1, 1, 2)
    # The second step counts the blocks that the first one left.
    assert Plan(({"drop": [0]}, {"drop": [0]})).order(4) == (2, 3)
    assert Plan(({"order": [2, 1, 0]}, {"drop": [0]})).order(3) == (1, 0)


def test_yaml_there_and_back(tmp_path: Path) -> None:
    plan = Plan(({"drop": [4, 5]}, {"order": [0, 0, 1]}), base="demo", why="they cost 0.01 nat/token — little")
    assert Plan.from_yaml(plan.to_yaml()) == plan
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml(), encoding="utf-8")
    assert Plan.load(path) == plan


@pytest.mark.parametrize(
    "step, words",
    [
        ({"drop": [4]}, "expected a list of blocks from 0 to 3"),
        ({"drop": [-1]}, "expected a list of blocks from 0 to 3"),
        ({"drop": 1}, "expected a list of blocks"),
        ({"drop": ["1"]}, "expected a list of blocks"),
        ({"fold": [1]}, "unknown step 'fold'"),
    ],
)
def test_steps_that_do_not_fit(step: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan((step,)).order(4)


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: [", "not YAML"),
        ("- drop: [1]", "expected a YAML mapping"),
        ("reshape: 2\nsteps: []", "reshape: 1"),
        ("reshape: 1\nsteps: {drop: [1]}", "list of one-key mappings"),
        ("reshape: 1\nsteps: [{drop: [1], order: [0]}]", "list of one-key mappings"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_texts_that_are_no_plan(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        Plan.from_yaml(text)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the plan"):
        Plan.load(tmp_path / "none.yaml")
