from __future__ import annotations

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.core.theory import Prediction
from layerwright.maths.regression_tasks import regression_tasks

NAME = "gradient_step_attention"


def errors(found: Prediction, method: str) -> np.ndarray:
    table = found.table
    return table.loc[table["method"] == method, "error"].to_numpy()


def test_layers_are_steps_to_rounding_and_more_of_them_are_better() -> None:
    found = lw.predict(NAME, layers=4, points=12, dimensions=4, tasks=300)
    assert (found.table["difference"] < 1e-12).all()
    best, corrected = errors(found, "best step"), errors(found, "corrected")
    assert best[0] == corrected[0] == 1.0
    assert best[1] == corrected[1]  # one layer has no use for the points' spread
    assert (np.diff(best) < 0).all()
    assert (corrected[2:] < best[2:]).all()
    assert list(found.picture.series)[1:] == ["best step", "corrected"]


def test_tasks_of_ones_own() -> None:
    xs, ys = (x.numpy() for x in regression_tasks(40, 6, 3, seed=3))
    found = lw.predict(NAME, {"xs": xs, "ys": ys}, layers=2, step=0.05)
    predicted = 0.05 * np.einsum("nd,nid,ni->n", xs[:, -1], xs[:, :-1], ys[:, :-1])
    error = ((predicted - ys[:, -1]) ** 2).mean() / (ys[:, -1] ** 2).mean()
    assert errors(found, "step 0.05")[1] == pytest.approx(error)


def test_one_task_of_whole_numbers() -> None:
    xs, ys = np.array([[2, 0], [0, 1], [1, 1]]), np.array([2, 3, 3])
    found = lw.predict(NAME, {"xs": xs, "ys": ys}, layers=1, step=0.25)
    assert errors(found, "step 0.25").tolist() == pytest.approx([1.0, ((0.25 * 7 - 3) / 3) ** 2])
    assert errors(found, "best step")[1] == pytest.approx(0.0, abs=1e-12)
    assert "one task" in found.notes[-1]


def test_a_step_that_is_too_large_is_named() -> None:
    found = lw.predict(NAME, layers=3, step=0.5, points=10, dimensions=5, tasks=50)
    assert any("too large" in note for note in found.notes)
    assert not any("too large" in note for note in lw.predict(NAME, layers=1, points=10, dimensions=5, tasks=50).notes)


ONES = {"xs": np.ones((3, 2)), "ys": np.ones(3)}


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({}, {"layers": 0}, "got layers=0"), ({}, {"points": 1.5}, "got points=1.5"), ({}, {"tasks": 0}, "got tasks=0"),
        ({}, {"dimensions": -1}, "got dimensions=-1"), ({}, {"noise": -1}, "noise=-1"), ({}, {"step": 0}, "step=0"),
        ({}, {"step": float("nan")}, "step=nan"), ({}, {"step": "a"}, "expected a number"),
        ({"xs": ONES["xs"]}, {}, "one of the arrays"), (ONES | {"ys": np.ones(4)}, {}, "at least two points"),
        (ONES | {"xs": np.full((3, 2), np.nan)}, {}, "NaN"), (ONES | {"ys": np.array([1, 1, 0])}, {}, "target of 0"),
        ({"xs": np.ones((1, 2)), "ys": np.ones(1)}, {}, "at least two points"),
        (ONES | {"ys": np.array(["a", "b", "c"])}, {}, "real numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict(NAME, arrays, **options)


def test_torch_tensors_are_arrays_too() -> None:
    xs, ys = regression_tasks(5, 4, 2)
    assert lw.predict(NAME, {"xs": xs, "ys": ys}, layers=1).table.equals(
        lw.predict(NAME, {"xs": xs.numpy(), "ys": ys.numpy()}, layers=1).table
    )
    assert isinstance(xs, torch.Tensor)
