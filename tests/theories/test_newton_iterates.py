from __future__ import annotations

import math

import numpy as np
import pytest

import layerwright as lw
from layerwright.maths.regression_tasks import regression_tasks

NAME = "newton_iterates"


def test_errors_are_those_of_loops_over_matrices() -> None:
    xs, ys = (x.numpy()[0] for x in regression_tasks(1, 7, 3, noise=0.2))
    found = lw.predict(NAME, {"xs": xs, "ys": ys}, iterations=5, step=0.05).table
    s, goal = xs.T @ xs, np.linalg.lstsq(xs, ys)[0]
    m, w = s / np.linalg.norm(s @ s), np.zeros(3)
    for k in range(6):
        errors = [((x - goal) ** 2).sum() / (goal**2).sum() for x in (m @ xs.T @ ys, w)]
        assert found.loc[k, ["newton_error", "descent_error"]].tolist() == pytest.approx(errors, rel=1e-8)
        m, w = m @ (2 * np.eye(3) - s @ m), w - 0.05 * xs.T @ (xs @ w - ys)


def test_steps_are_the_least_with_an_error_no_larger() -> None:
    arrays = {name: x.numpy() for name, x in zip(("xs", "ys"), regression_tasks(5, 9, 3))}
    table = lw.predict(NAME, arrays, iterations=8, step=0.03).table
    long = lw.predict(NAME, arrays, iterations=400, step=0.03).table["descent_error"].to_numpy()
    counted = table["descent_steps"].dropna()
    assert len(counted) >= 6
    for k, steps in counted.items():
        error = table["newton_error"][k]
        assert long[int(steps)] <= error
        assert steps == 0 or long[int(steps) - 1] > error


def test_in_closed_form_where_all_directions_are_alike() -> None:
    xs = 1.5 * np.eye(4)[None].repeat(3, 0)  # S = 2.25 I, ‖S²‖_F = 2 · 2.25²
    found = lw.predict(NAME, {"xs": xs, "ys": np.ones((3, 4))}, iterations=5, step=0.5 / 2.25).table
    halves = 0.25 ** (2.0 ** np.arange(6))
    assert found["newton_error"].tolist() == pytest.approx(halves)  # (1/2)^(2^k), squared
    assert found["descent_steps"].tolist() == pytest.approx(2.0 ** np.arange(6))


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_steps_that_an_iteration_is_worth_double_in_the_end(ratio: float) -> None:
    table = lw.predict(NAME, ratio=ratio, iterations=20, dimensions=3, points=30, tasks=50).table
    added = table["added_steps"].dropna().to_numpy()[-2:]
    assert added[1] / added[0] == pytest.approx(2.0, abs=0.35)
    assert added[1] > 8


def test_iterations_needed_go_with_twice_the_logarithm_of_the_condition_number() -> None:
    needed = []
    for ratio in (4.0, 64.0):
        xs = np.diag([math.sqrt(ratio), 1.0])
        table = lw.predict(NAME, {"xs": xs, "ys": np.array([0.0, 1.0])}, iterations=25).table
        needed.append(int((table["newton_error"] < 1e-6).argmax()))
        assert f"condition number of S is {ratio:g}" in lw.predict(NAME, {"xs": xs, "ys": np.ones(2)}).notes[0]
    assert needed[1] - needed[0] == 8  # log2 (64/4)²


def test_fewer_points_than_dimensions_go_to_the_smallest_weights() -> None:
    found = lw.predict(NAME, points=3, dimensions=6, iterations=15, tasks=20)
    assert found.table["newton_error"].iloc[-1] < 1e-3
    assert any("singular" in note for note in found.notes)
    assert list(found.picture.series) == ["Newton", "gradient descent"]


ONES = {"xs": np.ones((3, 2)), "ys": np.ones(3)}


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({}, {"iterations": 0}, "got iterations=0"), ({}, {"points": 1}, "got points=1"), ({}, {"tasks": 0}, "tasks=0"),
        ({}, {"dimensions": 2.5}, "got dimensions=2.5"), ({}, {"ratio": 0.5}, "ratio=0.5"), ({}, {"noise": -1}, "noi"),
        ({}, {"step": 0}, "step=0"), ({}, {"step": 5.0}, "expected one below"), ({"ys": ONES["ys"]}, {}, "one of the"),
        (ONES | {"ys": np.ones(4)}, {}, "at least two points"), (ONES | {"ys": np.zeros(3)}, {}, "all 0"),
        (ONES | {"xs": np.full((3, 2), np.inf)}, {}, "infinite"), (ONES | {"xs": np.array(["a"])}, {}, "real numbers"),
        (ONES | {"xs": np.ones((3, 0))}, {}, "expected"), (ONES | {"xs": 1e300 * np.ones((3, 2))}, {}, "overflow"),
        ({"xs": np.zeros((3, 2)), "ys": np.ones(3)}, {}, "all 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict(NAME, arrays, **options)
