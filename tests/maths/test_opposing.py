"""Opposing groups: the four numbers on a problem that can be done by hand, and on a step of training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerwright.maths.opposing import opposing_signals


def problem() -> tuple[Tensor, Tensor]:
    """Six examples in three dimensions: 1 and 4 pull far along the first axis, against one another."""
    losses = torch.ones(3, 6)
    losses[:, 1] = torch.tensor([1.0, 5.0, 2.0])  # up, then down
    losses[:, 4] = torch.tensor([6.0, 1.0, 4.0])  # down, then up
    losses[:, 2] = torch.tensor([1.0, 1.5, 1.75])  # up, and up again
    gradients = torch.zeros(6, 3)
    gradients[1], gradients[4], gradients[2] = torch.tensor([[8.0, 0, 6], [-3.0, 0, 0], [0, 1.0, 0]])
    return losses, gradients


def test_by_hand() -> None:
    losses, gradients = problem()
    found = opposing_signals(losses, lambda rows: gradients[rows].mean(0), torch.tensor([-1.0, 0.0, 0.0]), share=1 / 6)
    assert (found.rising.tolist(), found.falling.tolist()) == ([1], [4])
    assert found.flips == 1.0
    assert found.flips_of_all == pytest.approx(2 / 6)
    assert found.cosine == pytest.approx(-0.8)
    assert found.norms == (10.0, 3.0)
    assert found.projections == (pytest.approx(0.8), pytest.approx(-1.0))  # the vector's own sign means nothing


def test_groups_grow_with_their_share() -> None:
    losses, gradients = problem()
    found = opposing_signals(losses, lambda rows: gradients[rows].mean(0), share=2 / 6)
    assert found.rising.tolist() == [1, 2]
    assert found.falling[0] == 4
    assert found.norms[0] == pytest.approx(math.hypot(4.0, 0.5, 3.0))
    half = opposing_signals(losses, lambda rows: gradients[rows].mean(0), share=0.9)
    assert not {*half.rising.tolist()} & {*half.falling.tolist()}  # at most a half each


def test_the_order_of_examples_means_nothing() -> None:
    losses, gradients = problem()
    turn = torch.tensor([3, 4, 0, 5, 1, 2])
    here = opposing_signals(losses, lambda rows: gradients[rows].mean(0))
    there = opposing_signals(losses[:, turn], lambda rows: gradients[turn][rows].mean(0))
    assert turn[there.rising].tolist() == here.rising.tolist()
    assert there[2:6] == here[2:6]


def test_without_a_next_step_or_a_vector_they_are_undefined() -> None:
    losses, gradients = problem()
    found = opposing_signals(losses[:2], lambda rows: gradients[rows].mean(0))
    assert math.isnan(found.flips)
    assert math.isnan(found.flips_of_all)
    assert all(map(math.isnan, found.projections))
    assert found.cosine == pytest.approx(-0.8)


def test_a_group_without_gradient_has_no_direction() -> None:
    losses, _ = problem()
    found = opposing_signals(losses, lambda rows: torch.zeros(3))
    assert math.isnan(found.cosine)
    assert found.norms == (0.0, 0.0)


def test_bad_losses() -> None:
    losses, _ = problem()
    for wrong in (losses[:1], losses[:, :1], losses[0]):
        with pytest.raises(ValueError, match="or 3 steps, examples"):
            opposing_signals(wrong, lambda rows: torch.ones(3))
    losses[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        opposing_signals(losses, lambda rows: torch.ones(3))


def test_two_groups_on_the_edge_of_stability() -> None:
    """Linear regression on examples that disagree along one steep feature, with a learning rate beyond 2/λ."""
    x = 0.1 * torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x.sum(1)
    x[:4, 0], y[:2], y[2:4] = 10.0, 10.0, -10.0  # the same strong feature, opposite answers
    w, rate = torch.zeros(4, dtype=torch.float64), 1.0

    def each(w: Tensor) -> Tensor:
        return (x @ w - y).square() / 2

    values, vectors = torch.linalg.eigh(x.T @ x / 200)
    assert rate * values[-1] > 1.9
    w = w + 0.05 * vectors[:, -1]
    steps = [w]
    for _ in range(2):
        steps.append(steps[-1] - rate * x.T @ (x @ steps[-1] - y) / 200)
    losses = torch.stack([each(v) for v in steps])
    gradient = lambda rows: ((x[rows] @ w - y[rows])[:, None] * x[rows]).mean(0)  # noqa: E731
    found = opposing_signals(losses, gradient, vectors[:, -1], share=0.01)
    assert {frozenset(found.rising.tolist()), frozenset(found.falling.tolist())} == {
        frozenset({0, 1}),
        frozenset({2, 3}),
    }
    assert found.flips == 1.0
    assert found.cosine < -0.99
    assert found.projections[0] > 0.99
    assert found.projections[1] < -0.99
