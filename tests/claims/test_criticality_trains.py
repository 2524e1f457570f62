from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import criticality_trains as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

TINY = {"width": 8, "depth": 3, "steps": 5, "nets": 40}
GOOD = {
    "over_less": 0.6, "over_more": 0.5, "by_depth": 1.05, "by_width": -1.0, "relu_ratio": 1.0, "tanh_ratio": 1.0,
    "accuracy": 0.85, "shallow_gap": 0.01, "inside": 1.0,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.word == "inconclusive", "a network that has not learned decides nothing"
    assert verdict.measured["accuracy"]["met"] is not True
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for wrong in ({"over_less": 0.1}, {"over_more": 0.0}, {"by_depth": 2.0}, {"by_width": -0.5}, {"relu_ratio": 0.4}):
        assert verdict_of(**wrong) == "fails"
        for control in ({"accuracy": 0.3}, {"shallow_gap": 0.4}, {"inside": 0.0}):
            assert verdict_of(**wrong, **control) == "inconclusive"


def test_networks_side_by_side_train_as_each_alone(monkeypatch) -> None:
    together = claim.Digits(3).accuracies(8, 2, 40)[0]
    monkeypatch.setattr(claim, "FACTORS", claim.FACTORS[:1])
    alone = claim.Digits(3).accuracies(8, 2, 40)[0]
    torch.testing.assert_close(together[:1], alone, atol=0.01, rtol=0)
    assert alone.max() > 0.3 > alone[0, 0]


def test_one_that_diverges_leaves_the_others_alone(monkeypatch) -> None:
    monkeypatch.setattr(claim, "FACTORS", (1.0, 1e30))
    found = claim.Digits(3).accuracies(8, 2, 40)[0]
    monkeypatch.setattr(claim, "FACTORS", (1.0,))
    torch.testing.assert_close(found[:1], claim.Digits(3).accuracies(8, 2, 40)[0], atol=0.01, rtol=0)


def test_all_networks_of_one_seed_start_from_the_same_weights_but_for_the_factor() -> None:
    weights = [torch.randn(1, 4, 3).expand(2, 4, 3) * torch.tensor([1.0, 3.0])[:, None, None] for _ in range(1)]
    x = torch.randn(5, 4)
    torch.testing.assert_close(claim.outputs(weights, x)[1], 3 * claim.outputs(weights, x)[0])


def test_fluctuations_drawn_with_weights_multiply() -> None:
    """V/(nK²) of relu is (1 + 5/n)ˡ − 1."""
    found = claim.spreads(16, 3, 4000, seed=0)
    assert found == pytest.approx([0, 5 / 16, (1 + 5 / 16) ** 2 - 1, (1 + 5 / 16) ** 3 - 1], rel=0.25, abs=0.02)
