"""Kernels of trees of patches: by their recursion, by finite networks, by their Fourier series, and by regressions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from layerwright.maths.activation import activation
from layerwright.maths.hierarchical_kernel import (
    SMOOTHNESS,
    circle_spectrum,
    effective_dimensions,
    learning_exponent,
    sector_decay,
    tree_kernel,
)
from layerwright.maths.random_features import risk
from layerwright.theories.towers import Act, Dense, tower


def rows(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width)))


def naive(x: np.ndarray, z: np.ndarray, filters: list[int]) -> tuple[float, float, float, float]:
    """(q, q′, K, T) at the top of one tree, from the definition."""
    if not filters:
        return float(x @ x), float(z @ z), float(x @ z), 0.0
    below = [naive(a, b, filters[:-1]) for a, b in zip(np.split(x, filters[-1]), np.split(z, filters[-1]))]
    q, r, c, t = (2 * sum(part) / filters[-1] for part in zip(*below))
    rho = c / math.sqrt(q * r)
    angle = math.acos(max(-1.0, min(1.0, rho)))
    dual = math.sqrt(q * r) / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * rho)
    return q / 2, r / 2, dual, (c + t) * (math.pi - angle) / (2 * math.pi)


@pytest.mark.parametrize("filters", [[3], [2, 2], [3, 2, 2], [2, 1, 3]])
def test_kernels_are_those_of_the_recursion(filters: list[int]) -> None:
    size = math.prod(filters)
    x, z = rows(4, 2 * size), rows(3, 2 * size, seed=1)
    found = tree_kernel(x, filters, z)
    for i in range(4):
        for j in range(3):
            halves = [naive(a, b, filters) for a, b in zip(np.split(x[i].numpy(), 2), np.split(z[j].numpy(), 2))]
            nngp, passed = (sum(h[k] for h in halves) / 2 for k in (2, 3))
            assert float(found.nngp[i, j]) == pytest.approx(nngp, rel=1e-9)
            assert float(found.ntk[i, j]) == pytest.approx(nngp + passed, rel=1e-9)


@pytest.mark.parametrize("layers", [1, 3])
def test_one_patch_of_everything_is_a_dense_tower(layers: int) -> None:
    x = rows(5, 6)
    found = tree_kernel(x, [6] + [1] * (layers - 1))
    expected = tower([Dense(2.0), Act("relu")] * layers + [Dense()]).kernel(x)
    torch.testing.assert_close(found.nngp, expected.nngp)
    torch.testing.assert_close(found.ntk, expected.ntk)


def test_finite_convolutional_networks_have_it_in_the_mean() -> None:
    x, width, nets = rows(3, 8), 64, 600
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(nets):
        h = x[:, :, None]
        for _ in range(2):
            h = h.reshape(3, h.shape[1] // 2, -1)  # a filter reads all channels of two neighbours
            w = torch.randn(h.shape[-1], width, generator=generator, dtype=torch.float64)
            h = (h @ w * math.sqrt(2 / h.shape[-1])).relu()
        outputs.append(h.flatten(1) @ h.flatten(1).T / (h.shape[1] * width))  # the mean over read-outs
    draws = torch.stack(outputs)
    expected = tree_kernel(x, [2, 2]).nngp
    error = draws.std(0) / nets**0.5
    # Beside three standard errors, a width of 64 is not without end.
    assert ((draws.mean(0) - expected).abs() < 3 * error + 0.5 / width * expected.diagonal().max()).all()


def test_turning_a_patch_or_exchanging_nodes_changes_nothing() -> None:
    x = rows(6, 8)
    turn = torch.linalg.qr(rows(2, 2))[0]
    patches = x.reshape(6, 4, 2)
    turned = torch.cat([patches[:, :1] @ turn, patches[:, 1:]], 1).flatten(1)
    exchanged = patches[:, [2, 3, 1, 0]].flatten(1)
    mixed = patches[:, [0, 2, 1, 3]].flatten(1)  # patches of different nodes
    expected = tree_kernel(x, [2, 2, 2]).ntk
    torch.testing.assert_close(tree_kernel(turned, [2, 2, 2]).ntk, expected)
    torch.testing.assert_close(tree_kernel(exchanged, [2, 2, 2]).ntk, expected)
    assert (tree_kernel(mixed, [2, 2, 2]).ntk - expected).abs().max() > 1e-3


def test_a_smooth_activation_and_duplicates() -> None:
    x = rows(4, 4)
    both = tree_kernel(torch.cat([x, x[:1]]), [2, 2], phi=activation("erf"))
    assert torch.equal(both.nngp[0], both.nngp[4])
    assert float(both.nngp[0, 4]) == float(both.nngp[0, 0])
    assert torch.linalg.eigvalsh(both.nngp[:4, :4]).min() > 0


@pytest.mark.parametrize("kind", SMOOTHNESS)
def test_eigenvalues_fall_by_sector(kind: str) -> None:
    values, nu = circle_spectrum([2, 2], kind, 256), SMOOTHNESS[kind]
    assert effective_dimensions([2, 2]) == [1, 2]
    for dimension, of in ((1, lambda k: values[k, 0]), (2, lambda k: values[k, k])):
        # Even and odd frequencies have constants of their own, and the last ones are folded.
        falls = math.log2(of(12) / of(24))
        assert falls == pytest.approx(sector_decay(dimension, nu), abs=0.2)
    assert values.sum() == pytest.approx(float(getattr(tree_kernel(torch.ones(1, 4), [2, 2]), kind)))
    assert values[1:, 1:].max() < values[1:, 0].max()


@pytest.mark.parametrize(
    "student, target, kind", [([2], [2], "ntk"), ([2, 2], [2], "nngp"), ([2, 2], [2, 2], "ntk"), ([2, 2], [2], "ntk")]
)
def test_learning_curves_have_the_exponent(student: list[int], target: list[int], kind: str) -> None:
    """Of regression with the tree's kernel, by the theory of its eigenvalues, on a draw of a random network."""
    points = 2048 if len(student) == 1 else 192
    values = circle_spectrum(student, kind, points).clip(1e-16)
    squares = np.zeros_like(values)
    seen = squares if len(target) == len(student) else squares[:, 0]
    seen[...] = circle_spectrum(target, "nngp", points).clip(0)
    sizes = np.array([32, 64, 128, 256])
    args = values.ravel(), squares.ravel() / squares.sum()
    errors = [risk(*args, n, math.inf, 1e-10 * values.sum()).test for n in sizes]
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    d, whole = effective_dimensions(target)[-1], effective_dimensions(student)[-1]
    assert slope == pytest.approx(learning_exponent(d, 1.5, SMOOTHNESS[kind], whole), rel=0.15)


def test_exponents_at_their_limits() -> None:
    assert learning_exponent(3, 1.5, 0.5, 3) == pytest.approx(1.0)  # 2ν_T/d where the tree ends at the target
    assert learning_exponent(1, 50.0, 0.5, 1) == pytest.approx(4.0)  # twice (2ν + d)/d for the smoothest
    assert learning_exponent(2, 1.5, 0.5, math.inf) == pytest.approx(1.0)
    assert learning_exponent(2, 1.5, 0.5, math.inf, noise=True) == pytest.approx(0.5)


@pytest.mark.parametrize("filters", [[], [0], [2.0], [3, 2], [16]])
def test_filters_that_fit_no_input(filters: list) -> None:
    with pytest.raises(ValueError, match="filters"):
        tree_kernel(rows(3, 8), filters)
