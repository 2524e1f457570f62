"""Ensembles of wide networks in training: against their definition, simulated step by step, and Gaussian processes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from layerwright.maths import kernel_dynamics as dynamics
from layerwright.maths.kernel_dynamics import Gaussian

N, M = 6, 4
RNG = np.random.default_rng(0)
Y = RNG.standard_normal((N, 2))


def positive(rng: np.random.Generator) -> np.ndarray:
    a = rng.standard_normal((N + M, N + M + 3))
    return a @ a.T / (N + M)


K, T = positive(RNG), positive(RNG)
TASK = dynamics.decompose(K[:N, :N], T[:N, :N], Y)
POINTS = dynamics.query(TASK, K[N:, :N], T[N:, :N], K[N:, N:])
RATE = 0.9 / TASK.values.max()


def at(progress: dynamics.Progress) -> list[Gaussian]:
    return [dynamics.outputs(TASK, progress), dynamics.outputs(TASK, progress, POINTS)]


def same(found: list[Gaussian], mean: np.ndarray, covariance: np.ndarray, tolerance: float) -> None:
    for gaussian, rows in zip(found, (slice(0, N), slice(N, None)), strict=True):
        np.testing.assert_allclose(gaussian.mean, mean[rows], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gaussian.covariance, covariance[rows, rows], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("time", [0.0, 0.3, 5.0, 400.0])
def test_gradient_flow_is_its_formula_written_down(time: float) -> None:
    moved = T[:, :N] @ np.linalg.inv(T[:N, :N]) @ (np.eye(N) - expm(-T[:N, :N] * time / N))
    keep = np.eye(N + M) - np.pad(moved, ((0, 0), (0, M)))  # f_t = keep f_0 + moved y
    same(at(dynamics.flow(TASK.values, time)), moved @ Y, keep @ K @ keep.T, 1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("steps", [0, 1, 7, 60])
def test_gradient_descent_is_what_its_steps_do(steps: int, momentum: float) -> None:
    """Outputs of all points from every unit vector in place of f_0, and from 0 with the targets."""
    f = np.concatenate([np.eye(N + M), np.zeros((N + M, 2))], axis=1)
    y = np.concatenate([np.zeros((N, N + M)), Y], axis=1)
    before = f
    for _ in range(steps):
        f, before = f - RATE * T[:, :N] @ (f[:N] - y) / N + momentum * (f - before), f
    keep, mean = f[:, : N + M], f[:, N + M :]
    same(at(dynamics.descent(TASK.values, RATE, steps, momentum)), mean, keep @ K @ keep.T, 1e-9)


def test_small_steps_are_the_flow() -> None:
    flow, steps = dynamics.flow(TASK.values, 2.0), dynamics.descent(TASK.values, 1e-4, 20000)
    np.testing.assert_allclose(steps.left, flow.left, rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_descent_converges_below_the_largest_rate_and_not_above(momentum: float) -> None:
    top = dynamics.largest_rate(TASK.values, momentum)
    below, above = (np.abs(dynamics.descent(TASK.values, f * top, 3000, momentum).left).max() for f in (0.99, 1.01))
    assert below < 1 < above


def test_it_starts_with_the_prior_and_ends_with_kernel_regression() -> None:
    same(at(dynamics.flow(TASK.values, 0.0)), np.zeros((N + M, 2)), K, 1e-12)
    samples, queries = at(dynamics.flow(TASK.values, np.inf))
    np.testing.assert_allclose(samples.mean, Y)
    np.testing.assert_allclose(samples.covariance, 0, atol=1e-12)
    np.testing.assert_allclose(queries.mean, T[N:, :N] @ np.linalg.solve(T[:N, :N], Y))


def test_only_the_last_layer_trained_to_the_end_is_the_posterior() -> None:
    last = dynamics.decompose(K[:N, :N], K[:N, :N], Y)
    points = dynamics.query(last, K[N:, :N], K[N:, :N], K[N:, N:])
    end = dynamics.outputs(last, dynamics.flow(last.values, np.inf), points)
    found, jitter = dynamics.posterior(K[:N, :N], Y, K[N:, :N], K[N:, N:])
    assert jitter == 0
    np.testing.assert_allclose(found.mean, end.mean, rtol=1e-9)
    np.testing.assert_allclose(found.covariance, end.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", [1e-4, 0.3])
def test_the_posterior_is_that_of_scikit_learn(noise: float) -> None:
    x = RNG.standard_normal((N + M, 3))
    peer = GaussianProcessRegressor(RBF(), alpha=noise, optimizer=None).fit(x[:N], Y[:, 0])
    mean, covariance = peer.predict(x[N:], return_cov=True)
    k = RBF()(x)
    found, _ = dynamics.posterior(k[:N, :N], Y, k[N:, :N], k[N:, N:], noise)
    np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-8)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-7, atol=1e-9)


def test_errors_of_drawn_networks_have_the_mean_and_the_deviation() -> None:
    gaussian, draws = Gaussian(Y[:M], K[N:, N:]), 40000
    root = np.linalg.cholesky(gaussian.covariance)
    drawn = gaussian.mean + np.einsum("ij,djc->dic", root, RNG.standard_normal((draws, M, 2)))
    errors = (drawn**2).sum((1, 2)) / M
    mean, deviation = dynamics.squared_error(gaussian)
    assert abs(errors.mean() - mean) < 3 * errors.std() / draws**0.5
    squares = (errors - errors.mean()) ** 2
    assert abs(squares.mean() - deviation**2) < 3 * squares.std() / draws**0.5


def test_errors_in_modes_are_errors_on_samples() -> None:
    progress = dynamics.flow(TASK.values, 1.3)
    samples = dynamics.outputs(TASK, progress)
    expected = dynamics.squared_error(Gaussian(samples.mean - Y, samples.covariance))
    assert dynamics.squared_error(dynamics.errors_left(TASK, progress)) == pytest.approx(expected)


def test_a_singular_kernel_ends_where_its_modes_lead_and_jitter_is_told() -> None:
    twice = np.array([*range(N), 0])  # the first sample stands there again, with a target of its own
    k, t, y = K[np.ix_(twice, twice)], T[np.ix_(twice, twice)], np.concatenate([Y, Y[:1] + 2])
    task = dynamics.decompose(k, t, y)
    assert (task.values == 0).sum() == 1
    points = dynamics.query(task, K[N:][:, twice], T[N:][:, twice], K[N:, N:])
    end = dynamics.flow(task.values, np.inf)
    middle = Y + np.eye(N)[:, :1]  # the mean of the two targets is what can be learned
    np.testing.assert_allclose(dynamics.outputs(task, end).mean, middle[twice])
    expected = T[N:, :N] @ np.linalg.solve(T[:N, :N], middle)
    np.testing.assert_allclose(dynamics.outputs(task, end, points).mean, expected)
    found, jitter = dynamics.posterior(k, y, K[N:][:, twice], K[N:, N:])
    assert 0 < jitter < 1e-8
    # Two targets of one sample are √2 apart along a mode in which K has rounding, and that over the jitter is left.
    np.testing.assert_allclose(found.mean, K[N:, :N] @ np.linalg.solve(K[:N, :N], middle), atol=1e-15 * 2 / 1e-10)
    assert dynamics.posterior(k, y, K[N:][:, twice], K[N:, N:], noise=0.1)[1] == 0


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[N, N\]"):
        dynamics.decompose(K[:N, :N], T[:M, :M], Y)
    with pytest.raises(ValueError, match=r"targets \(6,\)"):
        dynamics.decompose(K[:N, :N], T[:N, :N], Y[:, 0])
