"""Layers that take gradient steps: against autograd and loops over matrices, and against moments of Gaussian tasks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerwright.maths.in_context import contexts, gradient_descent, whole_context
from layerwright.maths.linear_attention import (
    AttentionLayer,
    best_corrected,
    best_step,
    corrected_descent,
    gradient_step_layer,
    linear_attention,
    prediction,
    tokens,
)
from layerwright.maths.regression_tasks import regression_tasks


def through(xs: Tensor, ys: Tensor, layers: int, step: float, shrink: float = 0.0) -> Tensor:
    given = tokens(xs, ys)
    for _ in range(layers):
        given = linear_attention(given, gradient_step_layer(xs.shape[-1], step, shrink))
    return prediction(given)


@pytest.mark.parametrize("layers", [0, 1, 2, 5])
def test_layers_are_steps_of_gradient_descent_by_autograd(layers: int) -> None:
    xs, ys = regression_tasks(4, 7, 3, noise=0.3)
    found = through(xs, ys, layers, 0.05)
    for x, y, said in zip(xs, ys, found):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(layers):
            (slope,) = torch.autograd.grad(0.5 * (x[:-1] @ w - y[:-1]).square().sum(), w)
            w = (w - 0.05 * slope).detach().requires_grad_()
        assert float(said) == pytest.approx(float(x[-1] @ w.detach()), rel=1e-12, abs=1e-14)


def test_context_targets_become_residuals() -> None:
    xs, ys = regression_tasks(2, 6, 3)
    after = linear_attention(tokens(xs, ys), gradient_step_layer(3, 0.05))
    w = 0.05 * xs[:, :-1].mT @ ys[:, :-1, None]
    torch.testing.assert_close(after[:, :-1, -1], ys[:, :-1] - (xs[:, :-1] @ w).squeeze(-1))
    torch.testing.assert_close(after[..., :-1], xs)  # the points stay


def test_attention_is_its_sum_over_pairs_of_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = AttentionLayer(*(torch.randn(3, 3, generator=generator) for _ in range(4)))
    given = torch.randn(2, 5, 3, generator=generator)
    found = linear_attention(given, layer)
    for n in range(2):
        for j in range(5):
            total = given[n, j].clone()
            for i in range(4):  # nothing attends to the last token
                score = (layer.key @ given[n, i]) @ (layer.query @ given[n, j])
                total += layer.projection @ (layer.value @ given[n, i]) * score
            torch.testing.assert_close(found[n, j], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrink", [0.0, 0.01, -0.02])
def test_correction_of_curvature_in_closed_form(shrink: float) -> None:
    xs, ys = regression_tasks(5, 8, 4, noise=0.2, ratio=5.0)
    closed = corrected_descent(whole_context(xs, ys), 4, 0.04, shrink)
    assert closed.shape == (5, 5, 1)
    for k in range(5):
        torch.testing.assert_close(closed[k, :, 0], through(xs, ys, k, 0.04, shrink), rtol=1e-10, atol=1e-12)


def test_without_shrinkage_correction_is_gradient_descent() -> None:
    given = contexts(*regression_tasks(3, 9, 4))
    torch.testing.assert_close(
        corrected_descent(given, 6, 0.02, 0.0), gradient_descent(given, range(7), 0.02), rtol=1e-10, atol=1e-12
    )


def test_axes_and_order_of_the_context_mean_nothing() -> None:
    xs, ys = regression_tasks(3, 6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double()).Q
    here = through(xs, ys, 3, 0.05, 0.01)
    torch.testing.assert_close(through(xs @ turn, ys, 3, 0.05, 0.01), here)
    order = [3, 1, 5, 0, 2, 4, 6]
    torch.testing.assert_close(through(xs[:, order], ys[:, order], 3, 0.05, 0.01), here)
    torch.testing.assert_close(through(xs, 2 * ys, 3, 0.05, 0.01), 2 * here)


@pytest.mark.parametrize(("points", "dimensions", "noise"), [(10, 5, 0.0), (20, 10, 1.0)])
def test_the_best_step_of_gaussian_tasks(points: int, dimensions: int, noise: float) -> None:
    expected = 1 / (points + dimensions + 1 + noise**2)
    found, errors = [], []
    for seed in range(8):
        xs, ys = regression_tasks(2000, points, dimensions, noise=noise, seed=seed)
        best = best_step(whole_context(xs, ys), ys[:, -1:], 1)
        found.append(best.step)
        errors.append(best.error)
    step, error = torch.tensor(found), torch.tensor(errors)
    assert abs(float(step.mean()) - expected) < 3 * float(step.std()) / math.sqrt(8)
    least = dimensions * (1 - points * expected) + noise**2
    assert abs(float(error.mean()) - least) < 3 * float(error.std()) / math.sqrt(8)


def test_best_steps_are_the_best_of_their_neighbours() -> None:
    xs, ys = regression_tasks(100, 8, 4)
    given, targets = whole_context(xs, ys), ys[:, -1:]
    plain, corrected = best_step(given, targets, 3), best_corrected(given, targets, 3)

    def error(step: float, shrink: float) -> float:
        return float((corrected_descent(given, 3, step, shrink)[-1] - targets).square().mean())

    assert plain.error == pytest.approx(error(plain.step, 0.0))
    assert all(error(plain.step * f, 0.0) > plain.error for f in (0.98, 1.02))
    assert corrected.error == pytest.approx(error(corrected.step, corrected.shrink))
    for f, g in ((0.97, 1.0), (1.03, 1.0), (1.0, 0.97), (1.0, 1.03)):
        assert error(corrected.step * f, corrected.shrink * g) > corrected.error
    assert corrected.error < 0.9 * plain.error
    assert best_corrected(given, targets, 1) == best_step(given, targets, 1)


def test_no_step_is_so_long_that_every_context_diverges() -> None:
    xs = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    given = whole_context(xs, torch.tensor([[2.0, 3.0, 0.0]]))  # S = diag(4, 1): a step of 4/7 would answer 4
    assert best_step(given, torch.tensor([[4.0]]), 1).step == pytest.approx(2 / 4, rel=1e-5)


def test_contexts_of_zeros_have_no_step_to_find() -> None:
    given = whole_context(torch.zeros(2, 4, 3), torch.ones(2, 4))
    assert best_step(given, torch.ones(2, 1), 2).error == 1.0
    assert not corrected_descent(given, 2, 0.1, 0.1).any()
