"""Fluctuations from draw to draw: closed values, the paper's formulas, and networks with real weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerwright.maths.activation import activation
from layerwright.maths.criticality import critical, fluctuation, signal
from layerwright.maths.width_fluctuations import (
    Block,
    best_depth_over_width,
    critical_block,
    draw,
    expected,
    growth,
)


def block_of(name: str, skip: float = 0.0, inner: float | None = None):
    phi = activation(name)
    at = critical(phi)
    assert at is not None
    return phi, at, critical_block(at, skip, inner)


@pytest.mark.parametrize("name", ["linear", "relu", "gelu", "leaky_relu:0.3", "tanh", "sin"])
def test_without_a_stream_the_growth_is_that_of_dense_layers(name: str) -> None:
    phi, at, block = block_of(name)
    assert growth(phi, block, at).total == pytest.approx(fluctuation(phi, at), rel=1e-5)
    assert growth(phi, block, at).memory == 0


@pytest.mark.parametrize("name, weight, bias", [("tanh", 1.7, 0.1), ("relu", 1.5, 0.2), ("gelu", 1.9, 0.2)])
def test_without_a_stream_the_recursion_is_the_papers(name: str, weight: float, bias: float) -> None:
    phi = activation(name)
    ours, theirs = expected(phi, Block(weight, bias), 1.3, 8), signal(phi, weight, bias, 1.3, 8)
    torch.testing.assert_close(ours[0], theirs.variance)
    torch.testing.assert_close(ours[1], theirs.excess)


@pytest.mark.parametrize(
    "name, square, fourth", [("relu", 0.5, 0.5), ("linear", 1.0, 1.0), ("leaky_relu:0.5", 0.625, 0.53125)]
)
@pytest.mark.parametrize("gamma", [0.3, 0.9**0.5])
def test_what_memory_adds_apart_the_growth_on_a_stream_is_the_papers(
    name: str, square: float, fourth: float, gamma: float
) -> None:
    """(1 − γ²)((1 − γ²)(3 A₄/A₂² − 1) + 4γ²), as in implementations of the paper's appendix."""
    phi, at, block = block_of(name, gamma)
    found = growth(phi, block, at)
    papers = (1 - gamma**2) * ((1 - gamma**2) * (3 * fourth / square**2 - 1) + 4 * gamma**2)
    assert found.total - found.memory == pytest.approx(papers)


def test_the_memory_of_signs_by_the_hermite_coefficients_of_z_times_its_size() -> None:
    """c₁² = 8/π and c₃² = 4/3π carry most of E (z|z|)² = 3; relu's square is (z² + z|z|)/2."""
    phi, at, block = block_of("relu", 0.9**0.5)
    g = 0.9**0.5
    first = 2 * 0.1**2 * sum(c * g**k / (1 - g**k) for k, c in ((1, 8 / math.pi), (3, 4 / (3 * math.pi))))
    assert growth(phi, block, at).memory == pytest.approx(first, rel=0.01)
    assert growth(phi, block, at).total == pytest.approx(1.40, abs=0.005)


@pytest.mark.parametrize("name", ["linear", "abs"])
def test_an_even_square_has_no_sign_to_remember(name: str) -> None:
    phi, at, block = block_of(name, 0.7)
    assert growth(phi, block, at).memory == pytest.approx(0, abs=1e-12)
    assert growth(phi, block, at).total == pytest.approx(2 * (1 - 0.7**4))


@pytest.mark.parametrize("name", ["tanh", "sin"])
def test_where_the_critical_variance_is_zero_a_third_is_left(name: str) -> None:
    phi, at, block = block_of(name, 0.5**0.5)
    assert growth(phi, block, at).total == pytest.approx(2 / 3 * (1 - 0.5**2), rel=1e-4)
    excess = expected(phi, block, 0.1, 80)[1]
    assert float(excess[-1] - excess[-2]) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name, gamma, inner", [("relu", 0.7, None), ("gelu", 0.7, None), ("relu", 0.6, 2.0)])
def test_the_recursion_comes_to_the_formula(name: str, gamma: float, inner: float | None) -> None:
    phi, at, block = block_of(name, gamma, inner)
    start = 1.0 if math.isnan(at.variance) else at.variance
    k, excess = expected(phi, block, start, 60)
    torch.testing.assert_close(k, torch.full_like(k, start))
    assert float(excess[-1] - excess[-2]) == pytest.approx(growth(phi, block, at).total, rel=1e-5)


def test_a_wide_inner_layer_adds_nothing_but_what_the_outer_one_does() -> None:
    phi, at, block = block_of("relu", 0.6, 1e9)
    assert growth(phi, block, at).total == pytest.approx(2 * (1 - 0.6**4))
    phi, at, block = block_of("relu", 0.0, 1.0)
    assert growth(phi, block, at).total == pytest.approx(5 + 2), "a relu layer and a linear one"


@pytest.mark.parametrize(
    "name, gamma, inner", [("relu", 0.0, None), ("relu", 0.9, None), ("gelu", 0.8, None), ("tanh", 0.7, 1.0)]
)
def test_networks_drawn_at_random_agree(name: str, gamma: float, inner: float | None) -> None:
    phi, at, block = block_of(name, gamma, inner)
    start = at.variance if at.variance > 0 else 1.0
    excess = expected(phi, block, start, 16)[1]
    drawn = draw(phi, block, start, 200, 16, nets=2000, seed=2)
    first, last = drawn.layers
    near = float(excess[last] - excess[first]) / (last - first)
    assert abs(drawn.growth - near) < 3 * drawn.error
    assert drawn.error < 0.25 * near


def test_weights_need_not_be_drawn() -> None:
    """The same numbers from networks with weight matrices, each one drawn, on one input."""
    phi, _, block = block_of("relu", 0.6)
    nets, n, depth = 6000, 24, 4
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(nets, n, generator=generator)
    for _ in range(depth):
        w = torch.randn(nets, n, n, generator=generator) * math.sqrt(block.weight / n)
        z = block.skip * z + (w @ phi.function(z)[..., None])[..., 0]
    # The covariance of two units' squares, pair by pair.
    squares = z.double().square()
    k = float(squares.mean())
    pairs = squares.sum(1).square() - squares.square().sum(1)
    each = n * (pairs / (n * (n - 1)) / k**2 - 1)
    drawn = draw(phi, block, 1.0, n, depth, nets, seed=3)
    assert abs(float(each.mean() - drawn.excess[-1])) < 3 * 2**0.5 * float(each.std()) / nets**0.5


def test_fluctuations_of_relu_multiply() -> None:
    """V/K² = n ((1 + 5/n)ˡ − 1) at any width: what the growth is read from."""
    drawn = draw(*block_of("relu")[::2], 1.0, width=20, depth=3, nets=20000)
    exact = [20 * ((1 + 5 / 20) ** layer - 1) for layer in range(4)]
    assert drawn.excess.tolist() == pytest.approx(exact, rel=0.1, abs=0.05)
    assert drawn.layers == (1, 2), "later ones are too uncertain"
    assert float(drawn.variance[-1]) == pytest.approx(1, abs=0.03)


def test_halves_of_the_outputs_say_most_about_each_other_at_the_best_depth() -> None:
    """The mutual information of Gaussians that share a lognormal variance, by quadrature, to third order."""
    outputs = 4
    second, third = outputs**2 / 32, -(outputs**2) * (20 + 3 * outputs) / 192
    found = {s: (_negentropy(outputs, s) - 2 * _negentropy(outputs // 2, s)) / s**2 for s in (2e-3, 4e-3)}
    slope = (found[4e-3] - found[2e-3]) / 2e-3
    assert 2 * found[2e-3] - found[4e-3] == pytest.approx(second, rel=1e-3)
    assert slope == pytest.approx(third, rel=0.05)
    assert best_depth_over_width(5.0, outputs) * 5.0 == pytest.approx(-2 * second / (3 * third))


def _negentropy(m: int, s: float) -> float:
    """How far m Gaussians of a shared variance, of mean 1 and variance s, are from independent ones, in nats."""
    x, w = np.polynomial.hermite_e.hermegauss(30)
    sigma2 = math.log1p(s)
    variance, w = np.exp(math.sqrt(sigma2) * x - sigma2 / 2), w / w.sum()
    r, wr = np.polynomial.legendre.leggauss(400)
    r, wr = 6 + 6 * r, 6 * wr
    normal = 2 * r ** (m - 1) * np.exp(-(r**2) / 2) / (2 ** (m / 2) * math.gamma(m / 2))
    ratio = (w * variance ** (-m / 2) * np.exp(-(r[:, None] ** 2) / 2 * (1 / variance - 1))).sum(1)
    return float((wr * normal * ratio * np.log(ratio)).sum())


def test_what_explodes_ends_the_line() -> None:
    k, excess = expected(activation("relu"), Block(60.0), 1.0, 40)
    assert k[:30].isfinite().all()
    assert k[-1].isnan()
    assert excess[-1].isnan()
