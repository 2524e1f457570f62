from __future__ import annotations

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.theories.towers import Act, Dense, tower

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = np.stack([np.sin(2 * X[:, 0]), X[:, 1]], 1)
DATA = {"inputs": X, "targets": Y}


def test_what_is_said_of_the_nngp_is_regression_with_its_kernel() -> None:
    found = lw.predict("deep_kernel_machine", DATA, kernel="relu", noise=0.2, steps=1, seed=3)
    order = np.random.default_rng(3).permutation(40)
    held, train = order[:8], order[8:]
    y = (Y - Y[train].mean(0)) / Y[train].std(0)
    k = tower([Dense(2.0), Act("relu")] * 3 + [Dense()]).kernel(torch.from_numpy(X)).nngp.numpy()
    mean = k[np.ix_(held, train)] @ np.linalg.solve(k[np.ix_(train, train)] + 0.2 * np.eye(32), y[train])
    assert found["held_out_error_nngp"] == pytest.approx(((mean - y[held]) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("options", [{"kernel": "rbf"}, {"kernel": "relu", "points": 12}, {"kernel": "linear"}])
def test_learning_raises_the_objective_and_turns_to_the_targets(options: dict) -> None:
    found = lw.predict("deep_kernel_machine", DATA, steps=30, **options)
    assert found["objective"] > found["objective_nngp"]
    assert found["moved_1"] > 0.02
    assert found["moved_2"] > 0.02
    assert found["divergence_1"] > 0
    assert found["alignment_2"] > found["alignment_2_nngp"]
    assert found.picture is not None
    assert [x for x, _ in found.picture.series["(NNGP)"]] == [0, 1, 2]


def test_a_wide_one_learns_nothing() -> None:
    found = lw.predict("deep_kernel_machine", DATA, nu=1e8, depth=1, steps=30)
    assert found["moved_1"] < 1e-5
    assert found["held_out_error"] == pytest.approx(found["held_out_error_nngp"], rel=1e-4)
    assert "moved_2" not in set(found.table["quantity"])


def test_scales_of_targets_whole_numbers_and_duplicates_do_not_matter() -> None:
    once = lw.predict("deep_kernel_machine", DATA, steps=5)
    other = lw.predict("deep_kernel_machine", {"inputs": X, "targets": 1000 * Y - 7}, steps=5)
    assert other.table["value"].tolist() == pytest.approx(once.table["value"].tolist(), rel=1e-6)
    x = np.concatenate([np.round(3 * X).astype(int)] * 2)
    found = lw.predict("deep_kernel_machine", {"inputs": x, "targets": np.arange(80) % 7}, steps=5)
    assert np.isfinite(found.table["value"].astype(float)).all()


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({"inputs": X}, {}, "both, or neither"), ({"targets": Y}, {}, "both, or neither"),
        ({"inputs": X, "targets": Y[:9]}, {}, "as many of both"), ({"inputs": X[:9], "targets": Y[:9]}, {}, "9 rows"),
        ({"inputs": X, "targets": Y * 0}, {}, "the same for all inputs"),
        # 24 of them are fitted, whose mean is off by rounding.
        ({"inputs": X[:30], "targets": np.full(30, 0.7)}, {}, "the same for all inputs"),
        ({"inputs": X * np.nan, "targets": Y}, {}, "NaN"),
        ({"inputs": X.astype(complex), "targets": Y}, {}, "real numbers"),
        (DATA, {"kernel": "tanh"}, "relu, rbf, linear"),
        (DATA, {"depth": 0}, "depth=0"), (DATA, {"nu": 0.0}, "nu=0"), (DATA, {"noise": -1.0}, "noise=-1"),
        (DATA, {"points": 33}, "32 inputs to fit to and 33 points"), (DATA, {"steps": 0}, "steps=0"),
        ({"inputs": np.arange(1300)[:, None], "targets": np.arange(1300)}, {}, "set points=300"),
        ({"inputs": np.ones((20, 2)), "targets": np.arange(20)}, {}, "all the same"),
        ({"inputs": np.zeros((20, 2)), "targets": np.arange(20)}, {}, "all the same"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("deep_kernel_machine", arrays, **options)
