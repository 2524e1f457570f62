from __future__ import annotations

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.claims import tangent_convergence as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

TINY = {"widths": [8, 16, 32], "networks": 3, "trained": 2, "points": 5, "steps": 20}
GOOD = {
    "start_power": -1.0, "change_power": -1.0, "other_power": -0.05, "moving_power": 0.0, "moving_change": 2.0,
    "error_left": 0.01,
}  # fmt: skip


def word(**changes: float) -> str:
    names = [e.number for e in claim.EXPECTED]
    trials = [{name: (GOOD | changes).get(name, 0.1) * (1 + 0.01 * k) for name in names} for k in range(4)]
    return judge("", trials, claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["start_power"] < -0.3
    assert verdict.figure.startswith("<svg")


def test_powers_decide_and_controls_can_take_the_verdict_back() -> None:
    assert word() == "holds"
    assert word(start_power=-0.5) == "fails"
    assert word(change_power=-0.5) == "fails", "the bound that is proven is not what is expected"
    assert word(other_power=-0.9) == "inconclusive", "networks that come to any limit"
    assert word(moving_power=-0.9) == "inconclusive"
    assert word(moving_change=0.01) == "inconclusive", "a control whose kernel does not move"
    assert word(error_left=0.9) == "inconclusive"


def test_a_factor_of_the_output_is_taken_back_by_the_learning_rate() -> None:
    made, (x, y) = claim.network("erf", 2), claim.data(5, 0)
    model = made.network(claim.DIMENSION, 16, seed=0)
    whole, half = (lw.tangent_kernel(claim.Times(model, f), x).values for f in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 4)
    still, moving = (claim.train(made, x, y, 16, 2, 20, 0, factor) for factor in (1.0, 0.1))
    assert moving["change"] > 3 * still["change"], "a small output has to grow by moving the kernel"
    assert max(still["error_left"], moving["error_left"]) < 0.9


def test_data_and_distances() -> None:
    x, y = claim.data(50, 3)
    torch.testing.assert_close(x.square().mean(1), torch.ones(50))
    assert float(y.mean()) == pytest.approx(0, abs=1e-6)
    assert float(y.var()) == pytest.approx(1, rel=1e-5)
    assert claim.squared([3 * torch.eye(2), torch.zeros(2, 2)], 2 * torch.eye(2)) == pytest.approx((0.25 + 1) / 2)
