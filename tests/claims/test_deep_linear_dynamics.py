from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import deep_linear_dynamics as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.deep_linear import mode_strength

TINY = {"width": 12, "depths": [2, 3], "examples": 200}
GOOD = {
    "decoupled_error": 0.01, "random_error": 0.05, "orthogonal_growth": 0.1, "normal_growth": 2.0, "rate_power": -1.0,
    "other_depth": 0.2, "learned": 1.0, "at_the_edge": 0.0,
}  # fmt: skip


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    monkeypatch.setattr(claim, "EXACT_DEPTHS", (2,))
    monkeypatch.setattr(claim, "MODES", 2)
    monkeypatch.setattr(claim, "LEFT", 0.3)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.measured["decoupled_error"]["met"] is True
    assert verdict.measured["other_depth"]["met"] is True
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    def word(**changes: float) -> str:
        trial = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
        return judge("", [trial, {n: x + 1e-6 for n, x in trial.items()}], claim.EXPECTED, conditions={}).word

    assert word() == "holds"
    assert word(decoupled_error=0.1) == "fails"
    assert word(random_error=-0.3) == "fails"
    assert word(orthogonal_growth=1.0) == "fails"
    assert word(normal_growth=0.2) == "fails"
    assert word(rate_power=0.0) == "fails"
    for control in ({"other_depth": 0.0}, {"learned": 0.9}, {"at_the_edge": 0.2}):
        assert word(decoupled_error=0.1, **control) == "inconclusive"


@pytest.fixture(scope="module")
def task() -> tuple[torch.Tensor, torch.Tensor]:
    return claim.correlations(300, 16, 0)


def test_the_task_is_that_of_the_data_and_differs_by_seed(task) -> None:
    strengths = torch.linalg.svdvals(task[0])
    assert strengths.max() < 1.1  # correlations, but for targets that correlate among themselves
    assert strengths[-1] < 1e-12, "targets of mean 0 that sum to a constant"
    assert task[1].square().mean() == pytest.approx(1.0)
    assert not torch.equal(task[0], claim.correlations(300, 16, 1)[0])


def test_starts_are_what_they_are_called(task) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(task[0], full_matrices=False)
    product = torch.linalg.multi_dot(claim.decoupled(3, u, vt, 16, generator)[::-1])
    torch.testing.assert_close(u.T @ product @ vt.T, claim.START * torch.eye(10, dtype=torch.float64))
    orthogonal = torch.linalg.multi_dot(claim.STARTS["orthogonal"](4, 16, 10, generator)[::-1])
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(10, dtype=torch.float64))
    weights = torch.stack(claim.STARTS["normal"](300, 16, 10, generator)[:-1])
    assert weights.square().sum(1).mean() == pytest.approx(1.0, rel=0.02)


def test_half_times_are_read_off_the_curve_between_steps(task, monkeypatch) -> None:
    monkeypatch.setattr(claim, "MODES", 3)
    monkeypatch.setattr(claim, "RATE", 0.01)
    u, s, vt = torch.linalg.svd(task[0], full_matrices=False)
    found = claim.half_times(claim.decoupled(2, u, vt, 16, torch.Generator().manual_seed(0)), task[0])
    for top, time in zip(s.tolist(), found):
        assert mode_strength(top, 2, claim.START, [time])[0] == pytest.approx((top + claim.START) / 2, rel=0.03)


def test_learning_stops_with_the_fastest_rate(task) -> None:
    start = claim.STARTS["orthogonal"](2, 16, 10, torch.Generator().manual_seed(0))
    steps, best = claim.learn(start, *task)
    assert 0 < steps < claim.MOST_STEPS
    weights = [w[None].clone().requires_grad_() for w in start]
    for _ in range(steps + 1):
        product = claim.descend(weights, *task, claim.RATES[best : best + 1])[0]
    assert (task[0] - product).square().sum() < claim.LEFT * task[0].square().sum()
