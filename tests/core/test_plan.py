"""A plan is data: steps, requirements, in and out of YAML, from other tools' lists; and what is no plan says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def test_all_steps_of_order_are_lists_of_blocks() -> None:
    assert Plan(({"keep": "0:2, 5:"},)).order(8) == (0, 1, 5, 6, 7)
    assert Plan(({"loop": {"blocks": "1:3", "times": 3}},)).order(4) == (0, 1, 2, 1, 2, 1, 2, 3)
    assert Plan(({"stack": {"times": 2}},)).order(2) == Plan(({"stack": 2},)).order(2) == (0, 1, 0, 1)
    assert Plan(({"drop": "-2:"},)).order(5) == (0, 1, 2)


def test_yaml_there_and_back(tmp_path: Path) -> None:
    plan = Plan(
        ({"drop": [4, 5]}, {"order": [0, 0, 1]}, {"loop": {"blocks": [1], "share": "weights"}}),
        base="demo", why="they cost 0.01 nat/token — little", verify={"decode": {"tokens": 32}, "reload": "plain"},
        sha256="ab" * 32,
    )  # fmt: skip
    assert Plan.from_yaml(plan.to_yaml()) == plan
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == plan


def test_values_said_twice_are_written_twice() -> None:
    blocks = [1, 2]
    plan = Plan(({"drop": blocks}, {"drop": blocks}))
    assert Plan.from_yaml(plan.to_yaml()) == plan


def test_the_digest_is_of_the_steps_alone() -> None:
    plan = Plan(({"drop": [1]},), base="demo", why="because")
    assert plan.digest == Plan(({"drop": [1]},)).digest != Plan(({"drop": [2]},)).digest


@pytest.mark.parametrize(
    "text, order",
    [
        (
            "slices: [{sources: [{model: m, layer_range: [0, 2]}]}, {sources: [{model: m, layer_range: [1, 3]}]}]\n"
            "merge_method: passthrough\ndtype: bfloat16",
            (0, 1, 1, 2),
        ),
        ("layer_replication: [[0, 3], [1, 4]]", (0, 1, 2, 1, 2, 3)),
        ("stacking_list: [0, 1, 0, 1]", (0, 1, 0, 1)),
        ("[0, 2, 2, 3]", (0, 2, 2, 3)),
    ],
)
def test_lists_of_other_tools_are_read(text: str, order: tuple[int, ...]) -> None:
    assert Plan.from_yaml(text).order(4) == order


@pytest.mark.parametrize(
    "text, words",
    [
        ("slices: [{sources: [{model: m, layer_range: [0, 0]}]}]\nmerge_method: passthrough", "holds no block"),
        ("slices: [{sources: [{model: m, layer_range: [0, 2]}]}]\nmerge_method: slerp", "slerp"),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: [{model: b, layer_range: [0, 2]}]}]\n"
            "merge_method: passthrough",
            "joins a, b",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{layer_range: [0, 2], parameters: {scale: 0.5}}]}]",
            "scales weights",
        ),
        ("layer_replication: []", "expected a list of ranges"),
        ("stacking_list: [a]", "expected a list of blocks"),
    ],
)
def test_what_is_more_than_an_order_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan.from_yaml(text)


@pytest.mark.parametrize(
    "step, words",
    [
        ({"drop": [4]}, "got block 4; there are 4, 0 to 3"),
        ({"drop": [-1]}, "counted from 0"),
        ({"drop": [True]}, "counted from 0"),
        ({"drop": ["x"]}, "got 'x'"),
        ({"drop": [1, 1]}, "block 1 twice"),
        ({"drop": []}, "names no block"),
        ({"drop": None}, "counted from 0"),
        ({"drop": "0:4"}, "leaves no block"),
        ({"drop": "2:5"}, "slice 2:5 goes past the 4 blocks"),
        ({"keep": "2:2"}, "block 2 is 2:3"),
        ({"keep": [2, 1]}, "`order` changes it"),
        ({"loop": {"blocks": [0, 2]}}, "follow one another"),
        ({"loop": {"blocks": [0], "times": 1}}, "at least 2"),
        ({"loop": {"blocks": [0], "share": "both"}}, "copy or weights"),
        ({"stack": 1}, "at least 2"),
        ({"insert": {"after": [0]}}, "changes weights"),
        ({"recurse": {"unique": 1}}, "changes weights"),
    ],
)
def test_steps_that_do_not_fit(step: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan((step,)).order(4)


@pytest.mark.parametrize(
    "steps, words",
    [
        (({"dorp": [1]},), "did you mean 'drop'"),
        (({"loop": {"blocks": [1], "tmes": 2}},), "did you mean 'times'"),
        (({"loop": {"times": 2}},), "option 'blocks' is missing"),
        (({"drop": [1], "keep": [2]},), "one-key mapping"),
        ("drop", "expected a list of one-key mappings"),
    ],
)
def test_unknown_steps_and_options_are_refused_at_once(steps: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan(steps)


@pytest.mark.parametrize(
    "verify, words",
    [
        ({"decod": {}}, "did you mean 'decode'"),
        ({"decode": {"token": 3}}, "did you mean 'tokens'"),
        ({"decode": {"tokens": 0}}, "at least 1"),
        ({"decode": 3}, "expected a mapping of tokens"),
        ({"loss": {"max_ratio": "big"}}, "a number"),
        ({"latency": {"batch": 3}}, "list of whole numbers"),
        ({"exact": ["insert"]}, "no step of the plan: drop"),
        ({"reload": "fast"}, "reload: plain"),
        ([1], "expected a mapping"),
    ],
)
def test_requirements_that_nobody_can_check_are_refused(verify: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan(({"drop": [1]},), verify=verify)


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps: [{drop: [1]}]", "not a plan"),
        ("reshape: 2", "this version reads"),
        ("reshape: 1\nsteps: 3", "expected a list"),
        ("reshape: 1\nstep: []", "unknown entry 'step'"),
        ("reshape: 1\nverify: 3", "expected a mapping"),
        ("reshape: [", "not YAML"),
        ("42", "not a plan"),
        ("a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]", "alias"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("reshape: 1\nsteps: [{drop: !!python/name:os.system }]", "not YAML"),
        ("[" * 5000, "nested too deeply"),
        (" " * 2**20 + "a", "longer than 1 MiB"),
    ],
)
def test_what_is_no_plan_is_refused_and_runs_nothing(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan.from_yaml(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the plan"):
        Plan.load(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        Plan.load(tmp_path / "binary")


def test_powers_of_ten_are_numbers() -> None:
    plan = Plan.from_yaml("reshape: 1\nsteps: [{fold: {temperature: 2e-1}}]\n")
    assert plan.steps[0]["fold"]["temperature"] == 0.2
    assert Plan.from_yaml(plan.to_yaml()) == plan
