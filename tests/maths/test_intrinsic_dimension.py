"""The dimension of points by their two nearest neighbours: known manifolds, a naive transcription, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerwright.maths.intrinsic_dimension import two_nn


def torus(n: int, dimension: int, seed: int) -> np.ndarray:
    """Points at random on a flat torus, which has neither boundary nor curvature."""
    angles = np.random.default_rng(seed).uniform(0, 2 * math.pi, (n, dimension))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def naive(points: np.ndarray) -> float:
    ratios = []
    for i, point in enumerate(points):
        near = sorted(math.dist(point, other) for j, other in enumerate(points) if j != i)
        ratios.append(math.log(near[1] / near[0]))
    return (len(points) - 1) / math.fsum(ratios)


def test_it_is_the_definition() -> None:
    points = np.random.default_rng(0).standard_normal((60, 3))
    assert two_nn(points)[0] == pytest.approx(naive(points))


@pytest.mark.parametrize("dimension, n", [(1, 400), (2, 400), (4, 1000)])
def test_dimensions_of_manifolds_are_found_and_the_standard_error_is_their_spread(dimension: int, n: int) -> None:
    found = np.array([two_nn(torus(n, dimension, seed)) for seed in range(40)])
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - dimension) < 3 * spread / 40**0.5 + 0.02 * dimension
    assert abs(found[:, 1].mean() - spread) < 3 * spread / 78**0.5


def test_moves_scales_and_columns_of_no_use_change_nothing() -> None:
    points = torus(200, 2, 0)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    other = np.hstack([1e-6 * points @ turn + 3.0, np.ones((200, 2))])
    assert two_nn(other) == pytest.approx(two_nn(points), rel=1e-6)


def test_duplicates_count_once_and_tensors_and_whole_numbers_are_read() -> None:
    points = np.random.default_rng(0).integers(-(10**6), 10**6, (100, 3))
    expected = two_nn(points.astype(float))
    assert two_nn(np.concatenate([points, points[:30]])) == pytest.approx(expected)
    assert two_nn(torch.from_numpy(points)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "points, words",
    [
        (np.random.default_rng(0).random((19, 2)), "19 different rows"), (np.ones((50, 2)), "1 different rows"),
        (np.ones(50), "rows of real numbers"), (np.ones((50, 0)), "rows of real numbers"),
        (np.ones((50, 2), dtype=complex), "real numbers"), (np.full((50, 2), np.nan), "finite"),
        (np.arange(50)[:, None], "as on a grid"),
    ],
)  # fmt: skip
def test_what_has_no_dimension(points: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        two_nn(points)
