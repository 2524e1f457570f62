"""Deep linear networks: formulas against gradient descent, and against the minimum that an optimiser finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from layerwright.maths.deep_linear import collapse_strengths, learning_time, mode_strength, survival_count

TARGETS = np.array([3.0, 1.5, 0.6])


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3))).Q


def trained(depth: int, start: float, time: float, step: float = 1e-3) -> np.ndarray:
    """Strengths of the modes after gradient descent on all matrices, from balanced and aligned ones."""
    bases = [rotation(k) for k in range(depth + 1)]
    weights = [bases[k + 1] @ (start ** (1 / depth) * np.eye(3)) @ bases[k].T for k in range(depth)]
    task = bases[-1] @ np.diag(TARGETS) @ bases[0].T
    for _ in range(round(time / step)):
        below, above = [np.eye(3)], [np.eye(3)]
        for w in weights:
            below.append(w @ below[-1])
        for w in reversed(weights):
            above.append(above[-1] @ w)
        error = task - below[-1]
        weights = [w + step * above[depth - 1 - k].T @ error @ below[k].T for k, w in enumerate(weights)]
    product = np.eye(3)
    for w in weights:
        product = w @ product
    return np.diag(bases[-1].T @ product @ bases[0])


@pytest.mark.parametrize("depth, time", [(1, 1.0), (2, 2.0), (3, 2.0), (5, 1.5)])
def test_modes_are_learned_as_gradient_descent_learns_them(depth: int, time: float) -> None:
    expected = [mode_strength(s, depth, 0.05, [time])[0] for s in TARGETS]
    np.testing.assert_allclose(trained(depth, 0.05, time), expected, rtol=0.01)


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 100_000])
@pytest.mark.parametrize("start", [1e-4, 0.5, 4.0, 1e6])
def test_the_time_to_a_strength_is_when_the_curve_is_there(depth: int, start: float) -> None:
    times = [learning_time(2.0, depth, start, start + share * (2.0 - start)) for share in (0.9, 0.3)]
    assert times[0] > times[1] > 0
    reached = mode_strength(2.0, depth, start, times)
    np.testing.assert_allclose([learning_time(2.0, depth, start, a) for a in reached], times, rtol=1e-7)


@pytest.mark.parametrize("depth", [3, 5, 40])
@pytest.mark.parametrize("start", [0.01, 0.7, 9.0])
def test_the_curve_solves_the_equation(depth: int, start: float) -> None:
    times = np.linspace(0.0, 1.5 * learning_time(2.0, depth, start, start + 0.9 * (2.0 - start)), 30)
    flow = solve_ivp(
        lambda _, a: depth * a ** (2 - 2 / depth) * (2.0 - a), (0.0, times[-1]), [start], "DOP853", times,
        rtol=1e-12, atol=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(mode_strength(2.0, depth, start, times), flow.y[0], rtol=1e-7)


@pytest.mark.parametrize("start", [1e-300, 1e-9, 2.0, 1e100])
def test_from_any_start_a_mode_ends_at_its_value_and_never_turns_back(start: float) -> None:
    long = 2 * learning_time(2.0, 1000, start, 1.999999) if start < 2 else 1e3
    found = mode_strength(2.0, 1000, start, np.linspace(0, long, 50))
    assert found[0] == pytest.approx(start, rel=1e-12)
    assert found[-1] == pytest.approx(2.0, rel=1e-12)
    assert (np.diff(found) * np.sign(2.0 - start) >= 0).all()


def test_the_closed_form_of_two_matrices_is_the_flow() -> None:
    times = np.linspace(0, 5, 7)
    close = mode_strength(1.3, 2, 0.01, times)
    steps = (close[1:] - close[:-1]).sum()
    assert steps == pytest.approx(close[-1] - 0.01)
    a, h = mode_strength(1.3, 2, 0.01, [2.0, 2.0 + 1e-6, 2.0 - 1e-6]), 1e-6
    assert (a[1] - a[2]) / (2 * h) == pytest.approx(2 * a[0] * (1.3 - a[0]), rel=1e-6)


def test_deeper_networks_wait_longer_from_a_small_start_and_not_from_orthogonal_matrices() -> None:
    """Times in steps at a learning rate over depth."""
    small = [d * learning_time(1.5, d, 1e-3, 1.2) for d in (2, 4, 8, 64)]
    assert small == sorted(small)
    assert small[-1] > 10 * small[0]
    orthogonal = [d * learning_time(1.5, d, 1.0, 1.2) for d in (2, 8, 64, 512)]
    assert max(orthogonal) < 1.2 * min(orthogonal)


# With weight decay


def minimum(counts: list[int], matrices: int, weight_decay: float, feature_decay: float) -> tuple[torch.Tensor, ...]:
    """The lowest of several minima that an optimiser finds: squares of rows and features, what is left of NC1."""
    total, k, width = sum(counts), len(counts), 4
    classes = torch.repeat_interleave(torch.arange(k), torch.tensor(counts))
    y = torch.eye(k, dtype=torch.float64)[classes].T
    best: tuple[float, torch.Tensor, torch.Tensor] | None = None
    for seed in range(2):
        torch.manual_seed(seed)
        h = (0.5 * torch.randn(width, total, dtype=torch.float64)).requires_grad_()
        shapes = [(k, width)] + [(width, width)] * (matrices - 1)
        w = [(0.5 * torch.randn(*s, dtype=torch.float64)).requires_grad_() for s in shapes]
        solver = torch.optim.LBFGS(
            [h, *w], max_iter=300, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def product(w: list[torch.Tensor] = w) -> torch.Tensor:
            return w[0] if len(w) == 1 else torch.linalg.multi_dot(w)

        def loss(h: torch.Tensor = h, w: list[torch.Tensor] = w) -> torch.Tensor:
            for x in (h, *w):
                x.grad = None
            decay = weight_decay * sum(x.square().sum() for x in w) + feature_decay * h.square().sum()
            found: torch.Tensor = (product(w) @ h - y).square().sum() / (2 * total) + decay / 2
            found.backward()
            return found

        value = solver.step(loss).item()
        value = loss().item()
        if best is None or value < best[0]:
            means = torch.stack([h.detach()[:, classes == c].mean(1) for c in range(k)], 1)
            best = value, product().detach().square().sum(1), means.square().sum(0)
    assert best is not None
    return best[1:]


@pytest.mark.parametrize("matrices, weight_decay, feature_decay", [(1, 0.02, 2e-3), (2, 0.01, 1e-3), (1, 0.5, 0.04)])
def test_lengths_at_the_end_are_those_of_the_minimum(matrices: int, weight_decay: float, feature_decay: float) -> None:
    counts = [6, 3, 1]
    w, h = collapse_strengths(counts, matrices, weight_decay, feature_decay)
    rows, features = minimum(counts, matrices, weight_decay, feature_decay)
    np.testing.assert_allclose(rows.numpy(), w, atol=1e-4)
    np.testing.assert_allclose(features.numpy(), h, atol=1e-3)
    assert (w[-1] == 0) == (feature_decay == 0.04), "the class of one sample has collapsed"


def energy(x: np.ndarray, ratio: float, matrices: int) -> np.ndarray:
    return 1 / (x**matrices + 1) + ratio * x


@pytest.mark.parametrize("matrices", [1, 2, 3, 6])
def test_a_class_survives_where_features_have_less_energy_than_none(matrices: int) -> None:
    counts, grid = [50, 50], np.linspace(0, 80, 800_001)
    for decay in (1e-3, 3e-3, 1e-2, 2e-2, 4e-2):
        total = sum(counts)
        ratio = matrices * total * (total * decay**matrices * decay) ** (1 / matrices) / counts[0]
        best = grid[energy(grid, ratio, matrices).argmin()]
        w, _ = collapse_strengths(counts, matrices, decay, decay)
        assert (w[0] / (total * decay)) ** (1 / matrices) == pytest.approx(best, abs=2e-4)
        assert (w[0] > 0) == (counts[0] > survival_count(counts, matrices, decay, decay))
