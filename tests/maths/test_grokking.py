"""The energy of a hidden unit on modular addition: by its definition, at its maxima, and under the group's moves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerwright.maths.grokking import (
    Addition,
    emerged,
    fourier_purity,
    pure_features,
    share_of_features,
    threshold,
)

M = 11
RNG = np.random.default_rng
SOME = RNG(0).permutation(M * M)[:60]


def naive(w: np.ndarray, samples: np.ndarray) -> float:
    """½ ‖Ỹᵀ σ(Xw)‖² with matrices as written."""
    x, y = np.zeros((len(samples), 2 * M)), np.zeros((len(samples), M))
    for row, s in enumerate(samples):
        i, j = divmod(int(s), M)
        x[row, i] = x[row, M + j] = y[row, (i + j) % M] = 1
    centred = y - y.mean(0)
    return float(0.5 * ((centred.T @ (x @ w) ** 2) ** 2).sum())


@pytest.mark.parametrize("samples", [SOME, np.arange(M * M)])
def test_energy_and_gradient_are_those_of_the_definition(samples: np.ndarray) -> None:
    w = RNG(1).standard_normal((3, 2 * M))
    energy, gradient = Addition(M, samples).energy(w)
    assert energy == pytest.approx([naive(row, samples) for row in w])
    step, along = 1e-6, RNG(2).standard_normal(2 * M)
    slopes = [(naive(row + step * along, samples) - naive(row - step * along, samples)) / (2 * step) for row in w]
    assert gradient @ along == pytest.approx(slopes, rel=1e-6)


@pytest.mark.parametrize("modulus", [7, 10, 23])
def test_on_all_pairs_every_maximum_is_a_wave_of_energy_a_quarter_of_the_modulus(modulus: int) -> None:
    task = Addition(modulus, np.arange(modulus**2))
    ends = task.ascend(RNG(0).standard_normal((20, 2 * modulus)))
    assert fourier_purity(ends).min() > 1 - 1e-6
    if modulus % 2:
        assert task.energy(ends)[0] == pytest.approx(modulus / 4)
    waves = pure_features(modulus, 20, RNG(1))
    assert np.linalg.norm(waves, axis=1) == pytest.approx(1)
    assert task.energy(waves)[0] == pytest.approx(modulus / 4)
    assert task.ascend(waves) == pytest.approx(waves, abs=1e-8)


def test_ascent_climbs_and_ends_where_the_gradient_points_outwards() -> None:
    task, w = Addition(M, SOME), RNG(3).standard_normal((8, 2 * M))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    ends = task.ascend(w)
    gradient = task.energy(ends)[1]
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    assert (task.energy(ends)[0] > task.energy(w)[0]).all()
    assert gradient == pytest.approx(ends, abs=1e-3)
    for _ in range(20):  # no step goes down
        before = task.energy(w)
        w = w + before[1] / np.linalg.norm(before[1], axis=1, keepdims=True)
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        assert (task.energy(w)[0] >= before[0] * (1 - 1e-12)).all()


def test_shifted_numbers_are_the_same_task() -> None:
    w = RNG(4).standard_normal((2, 2, M))
    i, j = np.divmod(SOME, M)
    moved = Addition(M, ((i + 3) % M) * M + (j + 5) % M)
    turned = np.stack([np.roll(w[:, 0], 3, axis=1), np.roll(w[:, 1], 5, axis=1)], 1).reshape(2, -1)
    assert moved.energy(turned)[0] == pytest.approx(Addition(M, SOME).energy(w.reshape(2, -1))[0])


def test_purity_is_the_share_of_the_strongest_frequency() -> None:
    i = np.arange(8)
    waves = np.stack([np.cos(2 * math.pi * k * i / 8) for k in range(5)])
    both = np.concatenate([waves, waves], axis=1)
    assert fourier_purity(both) == pytest.approx([0, 1, 1, 1, 1], abs=1e-12)
    other = np.concatenate([waves[1], waves[2]])[None]  # each number at a frequency of its own
    assert fourier_purity(other) == pytest.approx([0.5])
    spike = np.eye(16)[:1]
    assert fourier_purity(spike) == pytest.approx([2 / 8])


def test_few_samples_are_memorised_and_many_give_features() -> None:
    order = RNG(0).permutation(M * M)
    few, many = (emerged(Addition(M, order[:n]), 16, RNG(1)) for n in (25, 115))
    assert [share_of_features(ends) for ends in few] == [0, 0]
    assert [share_of_features(ends) for ends in many] == [1, 1]


def test_labels_at_random_have_no_features() -> None:
    task = Addition(M, np.arange(M * M), RNG(0).integers(0, M, M * M))
    assert share_of_features(emerged(task, 16, RNG(1))[1]) == 0


def test_a_threshold_is_found_to_its_precision() -> None:
    for at in (12, 77, 400):
        assert threshold(lambda n, at=at: float(n >= at), 10, 1000) == pytest.approx(at, rel=0.05)


@pytest.mark.parametrize(
    "modulus, samples, labels, words",
    [
        (2, [0], None, "modulus 2"), (2.5, [0], None, "modulus 2.5"), (5, [], None, "whole numbers"),
        (5, [0.5], None, "whole numbers"), (5, [25], None, "outside 0 … 24"), (5, [3, 3], None, "one twice"),
        (5, [-1], None, "outside"), (5, [1, 2], [0], "one below 5 each"), (5, [1, 2], [0, 5], "one below 5 each"),
    ],
)  # fmt: skip
def test_what_is_no_task(modulus: float, samples: list, labels: list | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Addition(modulus, np.array(samples), None if labels is None else np.array(labels))  # type: ignore[arg-type]
