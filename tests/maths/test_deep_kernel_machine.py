"""Deep kernel machines: their objective as written, closed optima, the Gaussian process as a limit, and few points."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch import Tensor

from layerwright.maths.deep_kernel_machine import KERNELS, Machine, fit, linear_optimum, process, spread_points
from layerwright.theories.towers import Act, Dense, tower


def data(n: int = 12, outputs: int = 2, width: int = 4) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((n, width))), torch.from_numpy(rng.standard_normal((n, outputs)))


def drawn(machine: Machine, size: float = 0.3) -> Machine:
    """The machine somewhere away from its prior."""
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(machine.factors.shape)))
    return replace(machine, factors=machine.factors * torch.exp(size * noise) + size * noise.tril(-1))


def kernel_of(name: str, gram: np.ndarray) -> np.ndarray:
    """K(G), entry by entry."""
    q = np.diag(gram)
    if name == "linear":
        return gram
    if name == "rbf":
        return np.exp(gram - (q[:, None] + q) / 2)
    scale = np.sqrt(np.outer(q, q))
    angle = np.arccos((gram / scale).clip(-1, 1))
    return scale / math.pi * (np.sin(angle) + (math.pi - angle) * np.cos(angle))


@pytest.mark.parametrize("name", KERNELS)
def test_the_objective_is_the_papers(name: str) -> None:
    x, y = data(n=5, width=8)
    machine = drawn(process(x, y, depth=2, kernel=name, nu=1.7, noise=0.3))
    grams = [g.numpy() for g in machine.grams()]
    np.testing.assert_allclose(grams[0], (x @ x.T / 8).numpy())
    expected = 0.0
    for below, gram in pairwise(grams):
        prior = kernel_of(name, below)
        ratio = np.linalg.solve(prior, gram)
        expected -= 1.7 * 0.5 * (np.trace(ratio) - np.linalg.slogdet(ratio)[1] - 5)
    covariance = kernel_of(name, grams[-1]) + 0.3 * np.eye(5)
    expected += sum(multivariate_normal.logpdf(column, np.zeros(5), covariance) for column in y.T.numpy())
    assert float(machine.objective()) == pytest.approx(expected, rel=1e-5)


def test_before_learning_it_is_the_gaussian_process_of_a_network() -> None:
    x, y = data()
    other = data(n=7)[0] + 0.5
    machine = process(x, y, depth=2, kernel="relu", noise=0.2)
    network = tower([Dense(2.0), Act("relu")] * 3 + [Dense()])
    k, across = network.kernel(x).nngp, network.kernel(other, x).nngp
    expected = across @ torch.linalg.solve(k + 0.2 * torch.eye(12), y)
    torch.testing.assert_close(machine.predict(other), expected, rtol=1e-5, atol=1e-6)
    assert machine.divergences().tolist() == [0, 0]


@pytest.mark.parametrize("nu", [2.5, 4.0])
def test_one_linear_layer_without_noise_has_its_closed_optimum(nu: float) -> None:
    x, y = data(n=6, outputs=2, width=9)
    machine = fit(process(x, y, depth=1, kernel="linear", nu=nu, noise=1e-5), steps=1000)
    expected = linear_optimum((x @ x.T / 9).numpy(), y.numpy(), nu)
    np.testing.assert_allclose(machine.grams()[1].numpy(), expected, rtol=2e-3, atol=1e-3)


def test_the_closed_optimum_is_the_geometric_mean() -> None:
    rng = np.random.default_rng(0)
    a, y = rng.standard_normal((4, 6)), rng.standard_normal((4, 4))
    k = a @ a.T
    g = linear_optimum(k, y, nu=4.0)
    np.testing.assert_allclose(g @ np.linalg.solve(k, g), y @ y.T / 4, rtol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_a_linear_layer_on_orthogonal_inputs_is_a_problem_for_each_direction(noise: float) -> None:
    _, y = data(n=4, outputs=3)
    x = 2.0 * torch.eye(4, dtype=torch.float64)  # K = 1
    machine = fit(process(x, y, depth=1, kernel="linear", nu=1.3, noise=noise), steps=1000)
    squares = np.linalg.eigvalsh((y @ y.T).numpy())

    def best(square: float) -> float:
        def loss(log_g: float) -> float:
            g = math.exp(log_g)
            return 3 * math.log(g + noise) + square / (g + noise) + 1.3 * (g - log_g)

        return math.exp(float(minimize_scalar(loss, bounds=(-12, 6), method="bounded", options={"xatol": 1e-9}).x))

    found = np.linalg.eigvalsh(machine.grams()[1].numpy())
    np.testing.assert_allclose(found, sorted(best(s) for s in squares), rtol=2e-3)


@pytest.mark.parametrize("name", ["relu", "rbf"])
def test_the_divergence_alone_keeps_the_prior_and_a_large_nu_nearly_does(name: str) -> None:
    x, y = data()
    start = process(x, y, kernel=name, nu=1.0, noise=0.1)
    silent = replace(start, noise=1e12)  # the targets say nothing
    assert fit(silent, 20).divergences().max() < 1e-8
    far = [float(fit(replace(start, nu=nu), 20).divergences().max()) for nu in (1.0, 1e2, 1e6)]
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-8
    wide = fit(replace(start, nu=1e6), 20)
    torch.testing.assert_close(wide.predict(x + 0.1), start.predict(x + 0.1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "rbf"])
def test_the_gradient_is_right_and_learning_climbs(name: str) -> None:
    x, y = data(n=6)
    machine = drawn(process(x, y, kernel=name, noise=0.2))
    factors = machine.factors.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(replace(machine, factors=factors).objective(), factors)
    along = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 6, 6))).tril()
    ends = [float(replace(machine, factors=machine.factors + s * along).objective()) for s in (1e-6, -1e-6)]
    assert float((gradient * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3)
    assert float(fit(machine, 50).objective()) > float(machine.objective()) + 0.1


def test_all_points_given_as_such_are_the_dense_machine_and_their_order_does_not_matter() -> None:
    x, y = data()
    dense = fit(process(x, y, kernel="rbf"), 30)
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    sparse = fit(process(x, y, kernel="rbf", points=x[order]), 150)
    assert float(sparse.objective()) == pytest.approx(float(fit(dense, 150).objective()), rel=5e-3)


def test_fewer_points_bound_the_likelihood_from_below() -> None:
    x, y = data(n=30)
    whole = float(process(x, y, kernel="rbf").objective())
    bounds = []
    for count in (5, 10, 20, 30):
        points = x[spread_points(x, count, "rbf")]
        bounds.append(float(process(x, y, kernel="rbf", points=points).objective()))
    assert bounds == sorted(bounds)
    assert bounds[0] < whole - 1
    assert bounds[-1] == pytest.approx(whole, rel=1e-4)


def test_samples_at_the_points_have_their_gram_matrices() -> None:
    x, y = data()
    machine = drawn(process(x, y, kernel="relu", points=x[:5]))
    state = machine._propagate(x[:5])[-1]
    torch.testing.assert_close(state.cross, state.inner, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.square, state.inner.diagonal(), rtol=1e-5, atol=1e-6)


def test_points_are_spread_and_duplicates_and_zero_vectors_are_borne() -> None:
    x, y = data()
    twice = torch.cat([x, x[:4], torch.zeros(1, 4)])
    targets = torch.cat([y, y[:4], y[:1]])
    different = {tuple(row) for row in twice[spread_points(twice, 13, "rbf")].tolist()}
    assert different == {tuple(row) for row in twice.tolist()}
    assert len(set(spread_points(twice, 17, "rbf"))) == 17
    for name in ("relu", "rbf"):
        machine = fit(process(twice, targets, kernel=name, noise=0.1), 20)
        assert math.isfinite(float(machine.objective()))
        assert machine.predict(x).isfinite().all()
