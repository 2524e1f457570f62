from __future__ import annotations

import numpy as np
import pytest

from layerwright.claims import feature_threshold as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.grokking import CRITICAL_RATIO

GOOD = {
    "growth": 1.27, "drift": 1.0, "ratio": CRITICAL_RATIO, "below": 0.1, "above": 0.95, "all_pairs": 1.0,
    "random_labels": 0.1,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"moduli": (5, 7)})
    monkeypatch.setattr(claim, "UNITS", 4)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.measured["all_pairs"]["met"] is True
    assert 5 < verdict.conditions["threshold"][0] < 25
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for wrong in ({"growth": 2.0}, {"drift": 3.4}, {"ratio": 8.0}, {"below": 0.7}, {"above": 0.6}):
        assert verdict_of(**wrong) == "fails"
        for control in ({"all_pairs": 0.9}, {"random_labels": 0.8}):
            assert verdict_of(**control, **wrong) == "inconclusive"


def test_a_threshold_that_goes_as_all_pairs_would_fail_and_one_of_the_law_would_not() -> None:
    moduli = np.array(claim.SIZES["small"]["moduli"])
    for law, fits in ((moduli * np.log(moduli), True), (moduli**2, False)):
        growth = float(np.polyfit(np.log(moduli), np.log(law), 1)[0])
        drift = law[-1] / law[0] / (claim._unit(127) / claim._unit(23))
        assert verdict_of(growth=growth, drift=drift) == ("holds" if fits else "fails")


def test_samples_are_added_in_one_order_for_a_seed() -> None:
    first, same, other = (claim.thresholds(7, seed) for seed in (0, 0, 1))
    assert first == pytest.approx(same)
    assert first != other
    kept, found, below, above = first
    assert 7 < min(kept, found) <= max(kept, found) <= 49
    assert below < above
