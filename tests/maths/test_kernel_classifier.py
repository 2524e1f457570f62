"""Deep kernels as classifiers: what the theory says of their limits, and plain solutions where they can be had."""

from __future__ import annotations

import numpy as np
import pytest

from layerwright.maths.activation import Activation, activation
from layerwright.maths.deep_kernels import deep_kernels
from layerwright.maths.hermite import hermite_polynomials
from layerwright.maths.kernel_classifier import distances, hilbert_scores, merged, regress
from layerwright.maths.optimal_activation import optimal


def mixture(*shares: float) -> Activation:
    """κ(ρ) = Σ s_n ρⁿ."""
    return activation(lambda x: sum(s**0.5 * h for s, h in zip(shares, hermite_polynomials(x, len(shares))) if s))


def sphere(n: int, seed: int, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.abs(rng.standard_normal((n, columns)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, (x[:, 0] + 0.3 * rng.standard_normal(n) > 0.7).astype(int)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (x, y), (new, _) = sphere(80, 0), sphere(200, 1)
    return distances(x, x), distances(new, x), np.eye(2)[y]


def classes(phi: Activation, depth: int, data, tangent: bool) -> np.ndarray:
    (kernels,) = deep_kernels(phi, [depth])
    return regress(kernels, *data, tangent).values.argmax(1)


@pytest.mark.parametrize("tangent", [False, True])
def test_each_class_classifies_as_the_theory_says(data, tangent: bool) -> None:
    _, query, targets = data
    nearest, majority = targets[query.argmin(1)].argmax(1), targets.sum(0).argmax()
    assert (classes(activation("hermite:2"), 1100, data, tangent) == nearest).all()
    assert (classes(mixture(0.2, 0.3, 0, 0.5), 300, data, tangent) == majority).all()
    constant, early = (classes(activation("sigmoid"), depth, data, tangent) for depth in (300, 20))
    assert (constant == majority).mean() < 0.9 < (constant == early).mean()


def test_relu_is_a_majority_vote_at_many_times_the_depth_of_its_samples(data) -> None:
    found = deep_kernels(activation("relu"), [80, 1600])
    votes = [(regress(k, *data, True).values.argmax(1) == data[2].sum(0).argmax()).mean() for k in found]
    assert votes[0] < 0.8 < 0.98 < votes[1]


def test_the_singular_kernel_agrees_with_the_hilbert_estimate(data) -> None:
    found = classes(activation(optimal(2)), 1000, data, False)
    assert (found == hilbert_scores(data[1], data[2], 2.0).argmax(1)).mean() > 0.98
    assert (found == data[2][data[1].argmin(1)].argmax(1)).mean() < 0.95


@pytest.mark.parametrize("name", ["relu", "sigmoid", "cos"])
def test_a_constant_beside_a_shape_is_the_kernel_itself(name: str, data) -> None:
    """Before K runs together in float64, its inverse can be taken as it is."""
    (kernels,) = deep_kernels(activation(name), [2])
    small = data[0][:12, :12], data[1][:, :12], data[2][:12]
    for tangent in (False, True):
        inside, outside = (1 - np.exp(kernels.at(u, tangent)) for u in small[:2])
        np.fill_diagonal(inside, 1.0)
        found = regress(kernels, *small, tangent)
        if found.jitter == 0:
            plain = outside @ np.linalg.solve(inside, small[2])
            np.testing.assert_allclose(found.values, plain, atol=1e-4 * np.abs(plain).max())


def test_running_together_changes_no_class_once_the_shape_stands(data) -> None:
    """κ(ρ) = 0.4 + 0.6 ρ keeps its shape exactly: the limit is linear regression with a constant."""
    phi = mixture(0.4, 0.6)
    deep = classes(phi, 1500, data, False)
    assert (deep == classes(phi, 60, data, False)).mean() > 0.98
    assert (deep == data[2].sum(0).argmax()).mean() < 0.9


@pytest.mark.parametrize("name", ["hermite:2", "relu", "tanh", "sigmoid"])
def test_one_input_says_all(name: str) -> None:
    (kernels,) = deep_kernels(activation(name), [50])
    found = regress(kernels, np.zeros((1, 1)), np.array([[0.3], [0.0]]), np.array([[0.0, 1.0]]), False)
    assert found.values.argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["hermite:2", "relu", "tanh", "sigmoid"])
def test_an_input_keeps_its_own_class(name: str, data) -> None:
    train, _, targets = data
    (kernels,) = deep_kernels(activation(name), [100])
    assert (regress(kernels, train, train, targets, False).values.argmax(1) == targets.argmax(1)).mean() > (
        0.99 if name != "sigmoid" else 0.7
    )


def test_a_kernel_of_few_dimensions_gets_a_jitter_that_is_said(data) -> None:
    (kernels,) = deep_kernels(activation("hermite:2"), [1])
    assert regress(kernels, *data, False).jitter > 0


def test_an_activation_that_jumps_has_no_tangent_kernel(data) -> None:
    (kernels,) = deep_kernels(activation("sign"), [3])
    assert kernels.ntk is None
    with pytest.raises(ValueError, match="no tangent kernel"):
        regress(kernels, *data, True)


def test_points_that_stand_twice_are_one_with_the_mean_of_their_labels() -> None:
    found = merged(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), np.array([1, 2, 1, 0]), 3)
    assert found.points.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    np.testing.assert_allclose(found.targets, [[0, 0, 1], [1 / 3, 2 / 3, 0]])
    assert found.mixed == 1


def test_near_points_keep_the_digits_of_their_distance() -> None:
    x = np.array([[1.0, 1e-7]])
    assert distances(x, np.array([[1.0, 0.0]]))[0, 0] == pytest.approx(5e-15, rel=1e-9)
    assert distances(np.array([[-1.0, 0.0]]), x)[0, 0] == 1.0, "as far as any"
