from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

import layerwright as lw
from layerwright.maths.power_laws import tail_exponent
from layerwright.maths.random_features import risk
from layerwright.theories.scaling_regimes import regime
from layerwright.theories.towers import Act, Dense, tower

SIZES = np.array([64, 128, 256, 512, 1024])


def sphere(n: int, dimension: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dimension + 1))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("decay", [0.4, 0.8])
def test_the_theory_of_random_features_has_all_four_regimes(decay: float) -> None:
    found = lw.predict("scaling_regimes", decay=decay)
    for along, held in (("data", "width"), ("width", "data")):
        for at, kind, exponent in (("16", "variance-limited", 1.0), ("1e+06", "resolution-limited", decay)):
            name = f"{along}_exponent_at_{held}_{at}"
            row = found.table.set_index("quantity").loc[name]
            assert row["meaning"].startswith(kind)
            assert row["value"] == pytest.approx(exponent, rel=0.15)
            assert row["low"] < row["value"] < row["high"]
    assert len(found.table) == 4
    assert found.picture is not None
    assert found.picture.log


@pytest.mark.parametrize("decay, target", [(0.5, 0.5), (0.5, 1.0), (0.5, 4.0), (0.2, 3.0)])
def test_a_smoother_target_is_learned_faster_up_to_a_limit_of_the_kernel(decay: float, target: float) -> None:
    """What the theory says of α and r, against the learning curves of random features."""
    ranks = np.arange(1, 20001.0)
    values, squares = ranks ** -(1 + decay), ranks ** -(1 + target)
    sizes = np.geomspace(30, 600, 5)
    by_data = [risk(values, squares, n, math.inf, 1e-12).test for n in sizes]
    by_width = [risk(values, squares, 1e9, k, 1e-12).test for k in sizes]
    for losses, exponent in ((by_data, min(target, 2 + 2 * decay)), (by_width, min(target, 1 + decay))):
        slope = -np.polyfit(np.log(sizes), np.log(losses), 1)[0]
        assert slope == pytest.approx(exponent, rel=0.07)


def test_simulated_random_features_at_a_fixed_width_are_variance_limited() -> None:
    modes, width = 100, 8
    values = np.arange(1, modes + 1.0) ** -1.5
    target = (values / values.sum()) ** 0.5
    losses = np.zeros(len(SIZES))
    for seed in range(100):  # the same features at each size
        rng = np.random.default_rng(seed)
        w = values[:, None] ** 0.5 * rng.standard_normal((modes, width))
        for k, n in enumerate(SIZES):
            x = rng.standard_normal((n, modes))
            gram = (x @ w).T @ (x @ w)
            losses[k] += ((target - w @ np.linalg.solve(gram, (x @ w).T @ (x @ target))) ** 2).mean()
    found = lw.predict("scaling_regimes", {"data": SIZES, "losses": losses}).table
    assert found["low"][0] < 1 < found["high"][0]
    assert found["meaning"][0].startswith("variance-limited")


@pytest.mark.parametrize("dimension, n", [(1, 300), (2, 600)])
def test_the_spectrum_of_points_on_a_sphere_is_that_of_its_harmonics(dimension: int, n: int) -> None:
    """The mean of the kernel times cos kθ, twice, or times P_k(cos θ), 2k + 1 times."""
    angles = (np.arange(4000) + 0.5) / 4000 * math.pi
    circle = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)[:, : dimension + 1])
    network = tower([Dense(2.0), Act("relu"), Dense(2.0), Act("relu"), Dense()])
    kernel = network.kernel(circle[:1] * 0 + torch.eye(dimension + 1)[:1], circle).ntk[0].numpy()
    k = np.arange(50)
    if dimension == 1:
        waves, times = np.cos(k[:, None] * angles), 2 - (k == 0)
    else:
        waves, times = eval_legendre(k[:, None], np.cos(angles)) * np.sin(angles) * math.pi / 2, 2 * k + 1
    values = np.sort(np.repeat(waves @ kernel / 4000, times))[::-1]
    found = lw.predict("scaling_regimes", {"inputs": sphere(n, dimension)})
    assert found["kernel_exponent"] == pytest.approx(tail_exponent(values, n // 50, n // 5), rel=0.15)
    row = found.table.set_index("quantity").loc["intrinsic_dimension"]
    assert abs(row["value"] - dimension) < 3 * (row["high"] - row["value"]) / 1.96
    assert found["expected_data_exponent"] == found["expected_width_exponent"] == found["kernel_exponent"]
    assert found["exponent_four_over_d"] == pytest.approx(4 / row["value"])


def test_a_target_that_the_kernel_likes_more() -> None:
    x = sphere(300, 1)
    found = lw.predict("scaling_regimes", {"inputs": x, "targets": x[:, 0] + 0.01 * x[:, 1] ** 3})
    r, alpha = found["target_exponent"], found["kernel_exponent"]
    assert r > 2 * alpha
    assert found["expected_data_exponent"] == min(r, 2 + 2 * alpha)
    assert found["expected_width_exponent"] == min(r, 1 + alpha)


def test_duplicates_count_once() -> None:
    x = sphere(150, 2)
    y = x[:, 0]
    twice = {"inputs": np.concatenate([x, x[:50]]), "targets": np.concatenate([y, y[:50]])}
    once, found = (lw.predict("scaling_regimes", arrays) for arrays in ({"inputs": x, "targets": y}, twice))
    assert found.table["value"].tolist() == pytest.approx(once.table["value"].tolist(), rel=1e-6)
    assert "150 of 200 are left" in found.notes[0]


def test_the_dimension_tells_regimes_apart() -> None:
    assert regime(0.45, 0.55) == regime(0.45, 0.55, dimension=4) == "resolution-limited"
    assert regime(0.45, 0.55, dimension=1.5) == "neither"
    assert regime(0.95, 1.05, dimension=3) == "undecided"
    assert regime(0.95, 1.05, dimension=10) == "variance-limited"


def test_a_cut_that_crosses_is_said() -> None:
    n = np.geomspace(10, 1000, 8)
    losses = np.where(n < 100, 1.0, 0.2)
    notes = lw.predict("scaling_regimes", {"data": n, "losses": losses}).notes
    assert "reach from one regime to another" in notes[0]


SAME = 0.12573022  # 120 of them, less their mean, are not all 0


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({"losses": np.ones(5)}, {}, "losses without sizes"), ({"data": np.ones(5)}, {}, "sizes without losses"),
        ({"losses": np.ones(5), "data": np.ones(4)}, {}, "5 numbers, one for each loss"),
        ({"losses": np.zeros(5), "data": SIZES}, {}, "not above 0"),
        ({"losses": np.array([2, 1, 1, 1, np.inf]), "data": SIZES}, {}, "infinite"),
        ({"losses": np.ones(5), "data": np.ones(5)}, {}, "at least 4 sizes"),
        ({"losses": SIZES, "data": SIZES}, {}, "data exponent: got losses that do not fall"),
        ({"losses": np.array(["a"] * 5), "data": SIZES}, {}, "real numbers"),
        ({"targets": np.ones(5)}, {}, "targets without inputs"), ({"inputs": np.ones((200, 2))}, {}, "different rows"),
        ({"inputs": np.full((200, 2), np.inf)}, {}, "finite"), ({"inputs": sphere(60, 2)}, {}, "at least 100"),
        ({"inputs": sphere(120, 2), "targets": np.ones(3)}, {}, "a row for each input"),
        ({"inputs": sphere(120, 2), "targets": np.full(120, SAME)}, {}, "the same for all"),
        ({}, {"dimension": 0}, "dimension=0"), ({}, {"decay": -1.0}, "decay=-1"),
        ({"inputs": sphere(120, 2)}, {"depth": 0}, "depth=0"),
        ({"inputs": sphere(120, 2)}, {"activation": "step"}, "step"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("scaling_regimes", arrays, **options)
