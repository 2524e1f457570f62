from __future__ import annotations

import numpy as np
import pytest

from layerwright.claims import scaling_slopes as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.intrinsic_dimension import two_nn

TINY = {"dimensions": (1, 2), "sizes": (16, 32, 64), "points": 512, "draws": 2}
GOOD = {
    "data_slope": 1.0, "width_slope": 1.0, "data_by_dimension": -1.0, "width_by_dimension": -1.0, "duality": 0.1,
    "dimension_error": 0.1, "misfit": 0.1,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert len(verdict.conditions["exponents_by_data"]) == 2
    assert verdict.conditions["exponents_by_data"][0] > verdict.conditions["exponents_by_data"][1] > 0
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for wrong in ({"data_slope": 0.7}, {"width_slope": 1.3}, {"data_by_dimension": -0.4},
                  {"width_by_dimension": -1.6}, {"duality": 0.3}):  # fmt: skip
        assert verdict_of(**wrong) == "fails"
        assert verdict_of(dimension_error=0.4, **wrong) == verdict_of(misfit=0.4, **wrong) == "inconclusive"


def test_the_kernel_is_the_mean_of_features_products() -> None:
    rng = np.random.default_rng(0)
    x, y = claim.task(rng, 40, 2)
    assert x.shape == (40, claim.COLUMNS)
    assert np.linalg.matrix_rank(x) == 3
    assert y.std() == pytest.approx(1)
    draws = np.array([f @ f.T for f in (claim.features(rng, x, 500) for _ in range(60))])
    error = draws.std(0, ddof=1) / 60**0.5
    assert (np.abs(draws.mean(0) - claim.kernel(x, x)) / error < 3).mean() > 0.98


def test_points_have_the_dimension_that_they_are_made_with() -> None:
    estimate, error = two_nn(claim.task(np.random.default_rng(0), 600, 3)[0])
    assert abs(estimate - 3) < 3 * error


def test_a_student_with_the_teachers_units_makes_no_error() -> None:
    x, _ = claim.task(np.random.default_rng(0), 400, 2)
    taught = claim.features(np.random.default_rng(5), x, 16) @ np.ones((16, 1))
    assert claim._residual(claim.features(np.random.default_rng(5), x, 16), taught) < 1e-20
    assert claim._residual(claim.features(np.random.default_rng(6), x, 16), taught) > 1e-6
