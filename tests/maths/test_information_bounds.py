"""Bounds by layer: divergences against torch's and simulations, contraction against channels that can be counted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, wasserstein_distance_nd
from torch.distributions import MultivariateNormal, kl_divergence

from layerwright.maths.information_bounds import (
    divergence_bound,
    dropconnect_contraction,
    dropout_contraction,
    expected_error,
    gaussian_divergence,
    gaussian_wasserstein,
    layer_divergences,
    mean_classifier,
    noise_contraction,
    sliced_wasserstein,
    suffix_products,
    wasserstein,
)

RNG = np.random.default_rng


def within(x: np.ndarray, expected: float) -> bool:
    """Whether the mean of simulations is within three standard errors."""
    return abs(float(x.mean()) - expected) < 3 * float(x.std(ddof=1)) / math.sqrt(len(x))


@pytest.mark.parametrize("case", [(1, 5, 1.0, 1.0), (2, 3, 0.7, 2.0), (30, 40, 1.0, 1.5)])
def test_expectations_over_training_are_those_of_simulations(case: tuple[int, int, float, float]) -> None:
    d, n, signal, noise = case
    generator = RNG(0)
    mean = signal * np.eye(d)[0]
    u = mean + noise * generator.standard_normal((4000, n, d))  # Y X of every sample of every training set
    new = mean + noise * generator.standard_normal((4000, d))
    found = u.mean(1)
    expected = mean_classifier(d, n, signal, noise)
    along = (found * (found - mean)).sum(1) ** 2 / (found**2).sum(1)
    assert within(along, expected.along)
    assert within((found**2).sum(1), expected.size)
    assert within((np.einsum("snd,sd->sn", u, found) < 0).mean(1), expected.train)
    assert within(((new * found).sum(1) < 0).astype(float), expected.test)
    directions = generator.standard_normal((4000, d, max(d // 2, 1)))
    directions[:, :, 0] = found
    basis = np.linalg.qr(directions)[0]
    error = (np.einsum("sdr,sd->sr", basis, found - mean) ** 2).sum(1)
    assert within(error, expected_error(expected, max(d // 2, 1), d, n, noise))


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> MultivariateNormal:
    return MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance))


@pytest.mark.parametrize("injected", [0.0, 0.6])
def test_divergences_are_those_of_gaussians(injected: float) -> None:
    generator = RNG(1)
    found, mean = generator.standard_normal((2, 6))
    matrices = [generator.standard_normal((4, 6)), generator.standard_normal((3, 4)), generator.standard_normal((1, 3))]
    values = layer_divergences(matrices, found, mean, samples=7, noise=1.3, injected=injected)
    through, added = np.eye(6), np.zeros((6, 6))
    for k, value in enumerate(values):
        if k:
            through, added = matrices[k - 1] @ through, matrices[k - 1] @ added @ matrices[k - 1].T
            added = added + injected**2 * np.eye(len(added))
        spread = 1.3**2 * through @ through.T
        one = gaussian(through @ found, spread * (1 - 1 / 7) + added)
        assert value == pytest.approx(float(kl_divergence(one, gaussian(through @ mean, spread + added))), rel=1e-9)


@pytest.mark.parametrize("injected", [0.0, 0.3])
def test_no_layer_tells_more_than_the_one_before(injected: float) -> None:
    generator = RNG(2)
    for _ in range(20):
        widths = [9, *sorted(generator.integers(1, 12, 4), reverse=True), 1]
        matrices = [generator.standard_normal((b, a)) for a, b in itertools.pairwise(widths)]
        found, mean = generator.standard_normal((2, 9))
        values = layer_divergences(matrices, found, mean, samples=5, noise=1.0, injected=injected)
        assert all(after <= before + 1e-9 for before, after in itertools.pairwise(values))


def test_noise_makes_layers_tell_less() -> None:
    generator = RNG(3)
    matrices, (found, mean) = [generator.standard_normal((4, 6)) for _ in range(1)], generator.standard_normal((2, 6))
    ends = [layer_divergences(matrices, found, mean, samples=5, noise=1.0, injected=s)[-1] for s in (0.0, 0.5, 2.0)]
    assert ends[0] > ends[1] > ends[2] > 0
    assert layer_divergences(matrices, found, mean, samples=5, noise=1.0, injected=1e-6)[-1] == pytest.approx(ends[0])


def test_what_can_be_undone_changes_nothing() -> None:
    generator = RNG(4)
    found, mean = generator.standard_normal((2, 5))
    matrix, undone = generator.standard_normal((3, 5)), generator.standard_normal((3, 3))
    here, there = (layer_divergences([m], found, mean, samples=9, noise=1.0)[-1] for m in (matrix, undone @ matrix))
    assert here == pytest.approx(there)
    square = layer_divergences([generator.standard_normal((5, 5))], found, mean, samples=9, noise=1.0)
    assert square[0] == pytest.approx(square[1])


def test_of_the_input_it_is_the_information_of_a_sample_and_the_weights() -> None:
    for d, n in ((1, 2), (7, 50)):
        found = mean_classifier(d, n, 1.0, 2.0)
        whole = gaussian_divergence(d, expected_error(found, d, d, n, 2.0), n, 2.0)
        # Of ŵ and one U of its n: correlated by 1/√n in each dimension.
        assert whole == pytest.approx(-d / 2 * math.log(1 - 1 / n), rel=1e-9)


def test_the_bound_holds_for_what_training_does() -> None:
    for d, n, signal in ((5, 10, 1.0), (64, 20, 1.0), (200, 50, 2.0)):
        found = mean_classifier(d, n, signal, 1.0)
        for rank in (1, d // 2, d):
            square = expected_error(found, rank, d, n, 1.0)
            assert 0 < found.test - found.train < divergence_bound(gaussian_divergence(rank, square, n, 1.0))


def counted(channel: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The largest total variation of two rows of a channel, and the most of KL that random inputs get through."""
    variation = max(0.5 * np.abs(a - b).sum() for a in channel for b in channel)
    ratios = []
    for _ in range(300):
        p, q = generator.dirichlet(np.full(len(channel), 0.3), 2) + 1e-12
        before = float((p * np.log(p / q)).sum())
        a, b = p @ channel + 1e-300, q @ channel + 1e-300
        ratios.append(float((a * np.log(a / b)).sum()) / before)
    return variation, max(ratios)


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_dropout_counted_out(rate: float, width: int) -> None:
    inputs = list(itertools.product((-1, 1), repeat=width))
    outputs = list(itertools.product((-1, 0, 1), repeat=width))
    channel = np.array([
        [math.prod(rate if y == 0 else (1 - rate) * (x == y) for x, y in zip(i, o)) for o in outputs] for i in inputs
    ])  # fmt: skip
    variation, ratio = counted(channel, RNG(0))
    assert variation == pytest.approx(dropout_contraction(rate, width))
    assert ratio <= dropout_contraction(rate, width) + 1e-9


def test_dropconnect_counted_out() -> None:
    weights, rate = np.array([[1.0, 0.3], [0.2, -1.7]]), 0.4
    inputs = [np.array(x) for x in ((1.0, 2.0), (0.5, -1.0), (-3.0, 0.7))]
    masks = [np.array(m).reshape(2, 2) for m in itertools.product((0, 1), repeat=4)]
    told = [{}, {}, {}]
    for x, seen in zip(inputs, told):
        for m in masks:
            y = tuple(((weights * m) @ x).round(9))
            seen[y] = seen.get(y, 0.0) + rate ** (4 - m.sum()) * (1 - rate) ** m.sum()
    outputs = sorted({y for seen in told for y in seen})
    variation, ratio = counted(np.array([[seen.get(y, 0.0) for y in outputs] for seen in told]), RNG(0))
    assert variation == pytest.approx(dropconnect_contraction(rate, 2, 2))
    assert ratio <= dropconnect_contraction(rate, 2, 2) + 1e-9


@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0])
def test_noise_integrated_out(deviation: float) -> None:
    grid = np.linspace(-12 * max(deviation, 1), 12 * max(deviation, 1), 4001)
    inputs = np.linspace(-1.0, 1.0, 5)  # no more than 2 apart
    channel = norm.pdf(grid, inputs[:, None], deviation) * (grid[1] - grid[0])
    variation, ratio = counted(channel, RNG(0))
    assert variation == pytest.approx(noise_contraction(deviation, 2.0), abs=2e-4)
    assert ratio <= noise_contraction(deviation, 2.0) + 1e-6
    assert noise_contraction(0.0, 2.0) == 1.0
    assert noise_contraction(1.0, 0.0) == 0.0


def test_distances_are_those_of_optimal_transport() -> None:
    generator = RNG(5)
    one, other = generator.standard_normal((2, 12, 3))
    assert wasserstein(one, other) == pytest.approx(wasserstein_distance_nd(one, other))
    best = min(np.linalg.norm(one[:6] - other[list(p)], axis=1).mean() for p in itertools.permutations(range(6)))
    assert wasserstein(one[:6], other[:6]) == pytest.approx(best)
    assert wasserstein(one[:, :1], other[:, :1]) == pytest.approx(
        np.abs(np.sort(one[:, 0]) - np.sort(other[:, 0])).mean()
    )
    assert sliced_wasserstein(one, other) < wasserstein(one, other)
    turn = np.linalg.qr(generator.standard_normal((3, 3)))[0]
    assert wasserstein(one @ turn, other @ turn) == pytest.approx(wasserstein(one, other))
    assert wasserstein(one, one[::-1]) == 0.0
    with pytest.raises(ValueError, match="as many of both"):
        wasserstein(one, other[1:])


def test_gaussian_distance_is_the_one_of_many_samples() -> None:
    generator, (found, mean) = RNG(6), (1.7, 1.0)
    trained = found + 2.0 * math.sqrt(1 - 1 / 3) * generator.standard_normal(200_000)
    new = mean + 2.0 * generator.standard_normal(200_000)
    w2 = np.sqrt(((np.sort(trained) - np.sort(new)) ** 2).mean())
    assert gaussian_wasserstein(1, (found - mean) ** 2, 3, 2.0) == pytest.approx(w2, rel=0.02)
    assert wasserstein(trained[:, None], new[:, None]) <= w2


def test_products_of_norms_end_with_one() -> None:
    assert suffix_products([2.0, 0.5, 3.0]).tolist() == [3.0, 1.5, 3.0, 1.0]
    assert suffix_products([]).tolist() == [1.0]
