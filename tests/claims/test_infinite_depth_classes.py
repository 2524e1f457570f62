from __future__ import annotations

import numpy as np
import pytest

from layerwright.claims import infinite_depth_classes as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

TINY = {"samples": [20, 40], "tests": 60, "depth": 60, "relu_depth": 30}
GOOD = {
    "fall": -0.1, "to_nearest": 0.4, "to_majority": 0.2, "as_nearest": 1.0, "as_majority": 1.0,
    "relu_as_majority": 1.0, "as_hilbert": 0.99, "hilbert_fall": -0.1, "bayes_gap": 0.0, "nearest_stays": 1.0,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.measured["as_nearest"]["value"] == 1
    assert verdict.measured["as_hilbert"]["value"] > 0.9
    assert verdict.measured["shallow_as_hilbert"]["value"] < verdict.measured["as_hilbert"]["value"]
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    assert verdict_of(fall=0.01) == verdict_of(to_nearest=1.1) == verdict_of(as_nearest=0.9) == "fails"
    assert verdict_of(fall=0.01, hilbert_fall=0.01) == "inconclusive", "too few samples to see it in anything"
    assert verdict_of(to_nearest=1.1, nearest_stays=0.5) == verdict_of(fall=0.1, bayes_gap=0.1) == "inconclusive"


@pytest.mark.parametrize("dimension", [1, 2])
def test_labels_have_the_chance_that_is_said(dimension: int) -> None:
    points = claim.draw(dimension, 20_000, np.random.default_rng(0))
    assert points.x.shape == (20_000, dimension + 1)
    np.testing.assert_allclose(np.linalg.norm(points.x, axis=1), 1)
    for low in (0.2, 0.5, 0.8):
        some = np.abs(points.chance - low) < 0.1
        error = 0.5 / some.sum() ** 0.5
        assert abs(points.label[some].mean() - points.chance[some].mean()) < 4 * error


def test_errors_above_bayes_by_hand() -> None:
    chance = np.array([0.9, 0.4, 0.5])
    assert claim.above_bayes(np.array([1, 0, 1]), chance) == 0
    assert claim.above_bayes(np.array([0, 1, 0]), chance) == pytest.approx((0.8 + 0.2) / 3)


def test_few_samples_come_in_fixed_shares() -> None:
    points = claim.draw(2, 400, np.random.default_rng(0))
    few = claim.in_shares(points, 50)
    assert few.label.sum() == 20
    assert len(few.x) == 50
    assert {tuple(x) for x in few.x} <= {tuple(x) for x in points.x}
