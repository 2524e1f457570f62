"""Deep kernels against the recursion as it is written, and against what the theory says of their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.polynomial import polyder, polyval

from layerwright.maths.activation import Activation, activation
from layerwright.maths.deep_kernels import deep_kernels
from layerwright.maths.optimal_activation import optimal, sine_frequency

RNG = np.random.default_rng(0)


def recursion(phi: Activation, rho: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """K and T over their diagonals, with nothing rescaled."""
    k = torch.from_numpy(np.append(rho, 1.0))
    t, g = k.clone(), phi.diagonal(1.0)
    shares = (phi.coefficients(1.0, 200).square() / g).numpy()
    for _ in range(depth):
        if phi.closed is None:
            new, slope = (torch.from_numpy(polyval(k.numpy(), c)) for c in (shares, polyder(shares)))
        else:
            new, slope = phi.dual(1.0, k, 1.0) / g, phi.dual_derivative(1.0, k, 1.0) / g
        k, t = new, new + t * slope
    return k[:-1].numpy(), (t[:-1] / t[-1]).numpy()


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "tanh", "erf", "hermite:2", "sigmoid", "cos", "squared_relu", "linear", "sin:1.6"]
)
def test_the_recursion_as_it_is_written(name: str) -> None:
    phi = activation(name)
    rho = np.append(RNG.uniform(0.01, 0.99, 20), 1 - 1e-4)
    for found in deep_kernels(phi, [1, 2, 6]):
        for tangent, plain in enumerate(recursion(phi, rho, found.depth)):
            logs = found.at(1 - rho, bool(tangent))
            np.testing.assert_allclose(logs, np.log(plain if found.apart else 1 - plain), rtol=2e-6, atol=2e-8)


def test_depth_by_depth_equals_depth_at_once() -> None:
    phi, u = activation("tanh"), np.array([0.1, 0.5])
    *_, last = deep_kernels(phi, [3, 40])
    (once,) = deep_kernels(phi, [40])
    assert (last.at(u) == once.at(u)).all()


@pytest.mark.parametrize(
    "phi, exponent",
    [
        (activation(optimal(1)), 0.5), (activation(optimal(2)), 1.0), (activation(optimal(4)), 2.0),
        (activation(optimal(8)), 4.0), (activation(f"sin:{sine_frequency(2)}"), 1.0),
    ],
    ids=["optimal:1", "optimal:2", "optimal:4", "optimal:8", "sine"],
)  # fmt: skip
def test_thousands_of_layers_have_the_exponent_of_the_theory(phi: Activation, exponent: float) -> None:
    """K is far below 1e-300; over decades of the distance it rises as (1 − ρ)^−α, but for what stays bounded."""
    (found,) = deep_kernels(phi, [2000])
    u = np.array([1e-6, 1e-3])
    logs = found.at(u)
    assert np.diff(logs)[0] / np.diff(np.log(u))[0] == pytest.approx(-exponent, abs=0.01)
    assert logs.max() < -700, "what float64 would have lost"


def test_the_tangent_kernel_needs_more_layers_for_the_same_exponent() -> None:
    """ln T has a slope nearer α + 1 until depth times distance is large."""
    phi, u = activation(optimal(2)), np.array([0.02, 0.2])
    slopes = [-float(np.diff(k.at(u, True))[0] / np.log(10)) for k in deep_kernels(phi, [50, 500, 3000])]
    assert slopes[0] > 1.4 > slopes[1] > slopes[2] > 1.0
    assert slopes[2] == pytest.approx(1.0, abs=0.1)


def test_relu_comes_to_a_quarter_as_one_over_the_depth() -> None:
    """T → ¼ (1 + l₀/l), l₀ = 3π/√(2(1 − ρ)): what a depth of many times the samples is needed for."""
    (found,) = deep_kernels(activation("relu"), [1500])
    u = np.array([1e-2, 1e-3])
    shares = 1 - np.exp(found.at(u, True))
    start = 3 * math.pi / np.sqrt(2 * u)
    assert shares == pytest.approx(0.25 * (1 + start / 1500), rel=0.02)
    assert np.exp(found.at(u)) == pytest.approx(4.5 * math.pi**2 / (1500 + start) ** 2, rel=0.02)


def test_a_function_with_a_kink_and_no_closed_form_is_cut_to_a_dual_that_is_1_at_1() -> None:
    phi = activation(torch.nn.functional.elu)
    (kernels,) = deep_kernels(phi, [1])
    rho = np.array([0.2, 0.9])
    plain = (phi.dual(1.0, torch.from_numpy(rho), 1.0) / phi.diagonal(1.0)).numpy()
    logs = kernels.at(1 - rho)
    assert np.exp(logs) == pytest.approx(plain if kernels.apart else 1 - plain, rel=1e-4)
