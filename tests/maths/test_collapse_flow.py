"""Features that flow along the central path: against autograd on all of them, and against what is proven of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from layerwright.maths.class_moments import Classes, ClassMoments
from layerwright.maths.collapse_flow import best_classifier, collapse_path, collapse_rate

DECAYS = {"weight_decay": 0.01, "feature_decay": 0.003}


def drawn(counts: tuple[int, ...] = (6, 4, 9), d: int = 5, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    means = torch.randn(len(counts), d, generator=generator).double()
    return means[labels] + spread * torch.randn(len(labels), d, generator=generator).double(), labels


def moments(features: Tensor, labels: Tensor) -> Classes:
    found = ClassMoments(int(labels.max()) + 1, features.shape[1])
    found.add(features, labels)
    return found.result()


def ratio(means: Tensor, covariance: Tensor) -> float:
    centred = means - means.mean(0)
    return float(covariance.trace() / (centred.square().sum() / len(means)))


def loss(
    h: Tensor, start: Tensor, labels: Tensor, vicinity: float, weight_decay: float, feature_decay: float
) -> Tensor:
    """L with the classifier that is best for it, of features in rows."""
    n, k = len(h), int(labels.max()) + 1
    y = torch.nn.functional.one_hot(labels, k).double()
    w = torch.linalg.solve(h.T @ h + n / k * weight_decay * torch.eye(h.shape[1]).double(), h.T @ y)
    fit = (h @ w - y).square().sum() + feature_decay * h.square().sum() + vicinity * (h - start).square().sum()
    return fit / (2 * n) + weight_decay * w.square().sum() / (2 * k)


@pytest.mark.parametrize("vicinity", [0.0, 0.3, 5.0])
def test_the_flow_is_that_of_every_single_feature(vicinity: float) -> None:
    features, labels = drawn()

    def pull(_: float, flat: np.ndarray) -> np.ndarray:
        h = torch.from_numpy(flat.copy()).view_as(features).requires_grad_()
        (slope,) = torch.autograd.grad(loss(h, features, labels, vicinity, **DECAYS), h)
        return -len(h) * slope.flatten().numpy()

    times = [0.0, 0.5, 2.0, 6.0]
    naive = solve_ivp(pull, (0, 6), features.flatten().numpy(), t_eval=times, rtol=1e-9, atol=1e-11)
    path = collapse_path(moments(features, labels), times, vicinity=vicinity, **DECAYS)
    for flat, found in zip(naive.y.T, path):
        h = torch.from_numpy(flat.copy()).view_as(features)
        expected = moments(h, labels)
        torch.testing.assert_close(found.means, expected.means, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-5, atol=1e-6)
        assert found.moved == pytest.approx(float((h - features).norm() / features.norm()), abs=1e-6)


def test_the_classifier_is_the_one_of_least_loss() -> None:
    features, labels = drawn()
    found = moments(features, labels)
    w = best_classifier(found.means, found.covariance, found.counts, 0.05).requires_grad_()
    y = torch.nn.functional.one_hot(labels, 3).double()
    fit = (features @ w.T - y).square().sum() / (2 * len(y)) + 0.05 / (2 * 3) * w.square().sum()
    (slope,) = torch.autograd.grad(fit, w)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decays", [(0.01, 0.0), (0.1, 0.05), (0.001, 0.01)])
def test_without_a_vicinity_the_ratio_falls_all_the_way(seed: int, decays: tuple[float, float]) -> None:
    given = moments(*drawn((8, 8, 8), 6, seed, spread=0.3 + seed / 3))
    path = collapse_path(given, np.linspace(0, 30, 20), vicinity=0.0, weight_decay=decays[0], feature_decay=decays[1])
    assert (np.diff([ratio(at.means, at.covariance) for at in path]) < 0).all()


@pytest.mark.parametrize("counts", [(6, 6, 6), (3, 9, 5)])
def test_the_rate_is_the_slope_at_the_start(counts: tuple[int, ...]) -> None:
    given = moments(*drawn(counts))
    rate = collapse_rate(given, **DECAYS)
    for vicinity in (0.0, 2.0):
        path = collapse_path(given, [0.0, 1e-4], vicinity=vicinity, **DECAYS)
        before, after = (np.log(ratio(at.means, at.covariance)) for at in path)
        assert (after - before) / 1e-4 == pytest.approx(rate, rel=2e-3)


def test_features_held_hard_collapse_by_the_rate_over_the_vicinity() -> None:
    given = moments(*drawn())
    start, end = collapse_path(given, [0.0, 0.5], vicinity=200.0, **DECAYS)
    change = np.log(ratio(end.means, end.covariance) / ratio(start.means, start.covariance))
    assert change == pytest.approx(collapse_rate(given, **DECAYS) / 200, rel=0.03)
    free = collapse_path(given, [0.0, 0.5], vicinity=20.0, **DECAYS)[1]
    assert free.moved > 5 * end.moved


def test_where_the_flow_ends_nothing_pulls() -> None:
    features, labels = drawn()
    given = moments(features, labels)
    end = collapse_path(given, [0.0, 60.0], vicinity=0.5, **DECAYS)[-1]
    w = best_classifier(end.means, end.covariance, given.counts, DECAYS["weight_decay"])
    pull = w - end.means @ (w.T @ w) - DECAYS["feature_decay"] * end.means - 0.5 * (end.means - given.means)
    torch.testing.assert_close(pull, torch.zeros_like(pull), atol=1e-5, rtol=0)


def test_turned_features_turn() -> None:
    features, labels = drawn()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double()).Q
    here, there = (
        collapse_path(moments(h, labels), [0.0, 3.0], vicinity=0.1, **DECAYS)[-1] for h in (features, features @ turn.T)
    )
    torch.testing.assert_close(there.means, here.means @ turn.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.covariance, turn @ here.covariance @ turn.T, rtol=1e-5, atol=1e-6)


def test_what_cannot_flow_is_named() -> None:
    features, labels = drawn()
    with pytest.raises(ValueError, match="take a shorter time"):
        collapse_path(moments(1e-4 * features, labels), [0.0, 1e6], vicinity=0.0, weight_decay=1e-9, feature_decay=0.0)
    flat = ClassMoments(3, 5, covariance=False)
    flat.add(features, labels)
    with pytest.raises(ValueError, match="without Σ_W"):
        collapse_path(flat.result(), [0.0, 1.0], vicinity=0.0, **DECAYS)
    with pytest.raises(ValueError, match="do not vary"):
        collapse_rate(moments(torch.eye(5).double()[:3], torch.arange(3)), **DECAYS)
    with pytest.raises(ValueError, match="all the same"):
        collapse_rate(moments(torch.tensor([[1.0], [3.0], [3.0], [1.0]]), torch.tensor([0, 0, 1, 1])), **DECAYS)
