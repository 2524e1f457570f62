"""Ensembles of wide networks in training: the limit against finite networks that are trained, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

import layerwright as lw
from layerwright.theories.towers import Act, Dense, Word, tower

RNG = np.random.default_rng(3)
X, NEW = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
Y, ANSWERS = np.sin(2 * X[:, 0]) + X[:, 1], np.sin(2 * NEW[:, 0]) + NEW[:, 1]
ARRAYS = {"inputs": X, "targets": Y, "queries": NEW, "query_targets": ANSWERS}


def trained(words: Sequence[Word], width: int, nets: int, rate: float, steps: Sequence[int]) -> list[np.ndarray]:
    """Outputs at all rows after so many steps of gradient descent on Σ (f − y)² / 2N, `[nets, N + M]` each."""
    made = [tower(words).network(3, width, seed=seed).double() for seed in range(nets)]
    parameters, _ = stack_module_state(made)
    parameters = {name: p.detach() for name, p in parameters.items()}
    x, new, y = (torch.from_numpy(a) for a in (X, NEW, Y))

    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return (functional_call(made[0], p, (x,)).squeeze(-1) - y).square().mean() / 2

    slopes, found = vmap(grad(loss)), []
    for step in range(max(steps) + 1):
        if step in steps:
            both = [vmap(lambda p, at=at: functional_call(made[0], p, (at,)))(parameters) for at in (x, new)]
            found.append(torch.cat(both, 1).squeeze(-1).numpy())
        step_of = slopes(parameters)
        parameters = {name: p - rate * step_of[name] for name, p in parameters.items()}
    return found


def agree(depth: int, width: int, nets: int, rate: float, steps: Sequence[int]) -> None:
    """Means and variances over networks lie within three standard errors of the limit, and what a width leaves."""
    layer = [Dense(1.5, 0.1), Act("erf")]
    found = trained([*layer * depth, Dense()], width, nets, rate, steps)
    options = {"activation": "erf", "depth": depth, "weight_variance": 1.5, "bias_variance": 0.1}
    times = [rate * k for k in steps]
    table = lw.predict("wide_training", ARRAYS, learning_rate=rate, times=times, **options).table
    for time, outputs in zip(times, found, strict=True):
        rows = table[(table["by"] == "gradient descent") & (table["time"] == time)].set_index("quantity")
        mean, deviation = rows.loc[[f"query {k}" for k in range(4)], ["mean", "deviation"]].to_numpy().T
        # Kernels of a width differ from the limit by about depth / width of their size.
        slack, new = 5 * depth / width, outputs[:, 5:]
        near(new, mean, deviation, slack)
        near((new - mean) ** 2, deviation**2, 2**0.5 * deviation**2, slack)
        for name, errors in (("training error", outputs[:, :5] - Y), ("query error", new - ANSWERS)):
            near((errors**2).mean(1), *rows.loc[name, ["mean", "deviation"]], slack)


def near(samples: np.ndarray, expected: np.ndarray, deviation: np.ndarray, slack: float) -> None:
    error = 3 * deviation / len(samples) ** 0.5
    assert (np.abs(samples.mean(0) - expected) < error + slack * np.maximum(1.0, np.abs(expected).max())).all()


def test_trained_networks_are_as_the_limit_says() -> None:
    agree(depth=1, width=512, nets=50, rate=0.5, steps=[0, 4, 20, 100])


@pytest.mark.slow
def test_trained_networks_of_two_hidden_layers_are_as_the_limit_says() -> None:
    agree(depth=2, width=512, nets=40, rate=0.5, steps=[0, 5, 40])


def rows_at(table: pd.DataFrame, time: float, quantity: str) -> tuple[float, float]:
    row = table[(table["time"] == time) & (table["quantity"] == quantity)].iloc[0]
    return row["mean"], row["deviation"]


def test_one_sample_by_hand() -> None:
    """K = 0.5 and T = 1 of a unit vector of two numbers in one hidden layer; the error is left by e^{−t}."""
    one = {"inputs": np.array([[1, 0]]), "targets": np.array([3]), "queries": np.array([[1, 0]])}
    table = lw.predict("wide_training", one, depth=1, times=[0, 1, math.inf]).table
    assert rows_at(table, 0, "query 0") == pytest.approx((0.0, 0.5**0.5))
    left = math.exp(-1)
    assert rows_at(table, 1, "query 0") == pytest.approx((3 * (1 - left), left * 0.5**0.5))
    mean, variance = 3 * left, left**2 / 2
    expected = mean**2 + variance, (4 * mean**2 * variance + 2 * variance**2) ** 0.5
    assert rows_at(table, 1, "training error") == pytest.approx(expected)
    assert rows_at(table, math.inf, "query 0") == pytest.approx((3.0, 0.0))
    assert set(table["quantity"]) == {"training error", "query 0"}


def test_noise_is_what_the_posterior_expects() -> None:
    one = {"inputs": np.array([[1, 0]]), "targets": np.array([3])}
    table = lw.predict("wide_training", {**one, "queries": np.array([[1, 0]])}, depth=1, noise=0.5).table
    found = table[(table["by"] == "posterior") & (table["quantity"] == "query 0")].iloc[0]
    assert found["mean"] == pytest.approx(1.5)
    assert found["deviation"] == pytest.approx(0.5)


def test_outputs_of_several_columns_are_each_as_alone() -> None:
    two = {**ARRAYS, "targets": np.stack([Y, -2 * Y], 1), "query_targets": np.stack([ANSWERS, ANSWERS], 1)}
    alone, both = (lw.predict("wide_training", arrays, times=[2.0]).table for arrays in (ARRAYS, two))
    mean, deviation = rows_at(alone, 2.0, "query 3")
    assert rows_at(both, 2.0, "query 3, output 1") == pytest.approx((-2 * mean, deviation))
    assert "query 3" not in set(both["quantity"])


def test_small_steps_are_the_flow_and_momentum_is_faster() -> None:
    options = {"times": [3.0]}
    flow = lw.predict("wide_training", ARRAYS, **options).table
    errors = [
        rows_at(lw.predict("wide_training", ARRAYS, **options, **more).table, 3.0, "training error")[0]
        for more in ({"learning_rate": 1e-3}, {"learning_rate": 1e-3, "momentum": 0.5})
    ]
    assert errors[0] == pytest.approx(rows_at(flow, 3.0, "training error")[0], rel=0.01)
    assert errors[1] < 0.8 * errors[0]


def test_left_out_times_are_those_of_the_strongest_mode_and_the_end() -> None:
    found = lw.predict("wide_training", ARRAYS)
    top = lw.predict("wide_network", {"inputs": X})["largest_eigenvalue"]
    assert found.table["time"].dropna().unique() == pytest.approx([1 / top, 10 / top, 100 / top, math.inf])
    assert found.notes == [f"gradient descent converges for learning rates below {2 / top:.4g}"]
    assert lw.predict("wide_training", ARRAYS, times=4).table["time"].dropna().unique().tolist() == [4.0]


def test_the_picture_is_the_error_with_its_band() -> None:
    for arrays, names in ((ARRAYS, ["samples", "queries"]), ({"inputs": X, "targets": Y}, ["samples"])):
        picture = lw.predict("wide_training", arrays).picture
        assert picture is not None
        assert list(picture.series) == names
        for line in picture.series.values():
            times, middle, below, above = np.array(line).T
            assert (np.diff(times) > 0).all()
            assert (below >= 0).all()
            assert (above - middle >= middle - below - 1e-12).all()
    start = lw.predict("wide_training", ARRAYS, times=[float(times[0])]).table
    mean, deviation = rows_at(start, times[0], "training error")
    assert (middle[0], above[0]) == pytest.approx((mean, mean + deviation))
    assert lw.predict("wide_training").svg().startswith("<svg")


def test_samples_that_stand_there_twice_are_told() -> None:
    arrays = {"inputs": np.concatenate([X, X[:1]]), "targets": np.append(Y, Y[0] + 1)}
    found = lw.predict("wide_training", arrays, times=[math.inf])
    assert rows_at(found.table, math.inf, "training error")[0] == pytest.approx(2 * 0.25 / 6)
    assert [note.split(":")[0] for note in found.notes[:3]] == [
        "1 of 6 inputs stand there more than once", "T is singular", "K is singular",
    ]  # fmt: skip


def test_of_images_of_one_pixel_convolutions_are_dense_layers() -> None:
    images = ARRAYS | {"inputs": X[..., None, None], "queries": NEW[..., None, None]}
    rows, pixels = (lw.predict("wide_training", x, depth=2, filter_size=1).table for x in (ARRAYS, images))
    np.testing.assert_allclose(pixels["mean"], rows["mean"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pixels["deviation"], rows["deviation"], rtol=1e-6, atol=1e-9)


NAN = np.full((1, 3), math.nan)


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({"inputs": X}, {}, "without inputs or without targets"), ({"targets": Y}, {}, "without inputs or without"),
        ({"inputs": X, "targets": Y[:3]}, {}, r"got targets \(3, 1\) for 5 inputs"),
        ({"inputs": X, "targets": Y, "query_targets": Y}, {}, "query_targets without queries"),
        ({**ARRAYS, "queries": NEW[:, :2]}, {}, "queries of 2 columns; expected 3"),
        ({**ARRAYS, "queries": NEW[:, None, None]}, {}, "queries of 1 × 1 × 3 pixels; expected 3 columns"),
        ({**ARRAYS, "query_targets": ANSWERS[:2]}, {}, r"got query_targets \(2, 1\) for 4 inputs"),
        ({**ARRAYS, "query_targets": np.ones((4, 2))}, {}, "query_targets of 2 columns; expected 1"),
        ({**ARRAYS, "queries": NAN}, {}, "got queries that are NaN"),
        ({"inputs": 0 * X, "targets": Y}, {}, "kernel of zeros"),
        ({}, {"times": [-1]}, r"got times=\[-1\]"), ({}, {"times": [math.nan]}, "got times"),
        ({}, {"times": ["soon"]}, "expected numbers"), ({}, {"noise": -1}, "noise=-1"),
        ({}, {"momentum": 1, "learning_rate": 0.1}, "momentum=1"), ({}, {"momentum": 0.5}, "give learning_rate"),
        ({}, {"learning_rate": 0}, "above 0 and below 1.7"), ({}, {"learning_rate": 1.8}, "from which on it diverges"),
        ({}, {"activation": "step"}, "no tangent kernel"), ({}, {"depth": 0}, "depth=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words) as raised:
        lw.predict("wide_training", arrays, **options)
    assert "\n" not in str(raised.value)
