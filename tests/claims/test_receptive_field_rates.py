from __future__ import annotations

import math

import numpy as np
import pytest

from layerwright.claims import receptive_field_rates as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

GOOD = {
    "target_matters": 0.9, "uncursed": 1.2, "theory": 0.05, "target_over_depth": 0.4, "blind": 0.0, "misfit": 0.1,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"sizes": (16, 32, 64), "others": 50})
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["exponent_1_1"] > values["exponent_2_2"] > values["exponent_3_3"] > 0
    assert verdict.conditions["exponents_by_theory"]["1_3"] == 1.875
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for wrong in ({"target_matters": 0.2}, {"uncursed": 0.5}, {"theory": 0.4}, {"target_over_depth": -0.2}):
        assert verdict_of(**wrong) == "fails"
        for control in ({"blind": 0.5}, {"misfit": 0.4}):
            assert verdict_of(**control, **wrong) == "inconclusive"


def test_theorys_own_exponents_would_hold() -> None:
    log = {pair: math.log(claim.theory(*pair)) for pair in claim._PAIRS}
    cost = log[1, 3] - log[3, 3]
    depth = log[1, 1] - log[1, 3]
    assert (
        verdict_of(target_matters=cost, uncursed=math.exp(log[1, 3]) / 1.5, target_over_depth=cost - depth) == "holds"
    )


def test_a_target_depends_on_its_patches_only() -> None:
    x = claim.circles(np.random.default_rng(0), 40, 4)
    assert x.square().reshape(40, 4, 2).sum(2).numpy() == pytest.approx(2)
    other = x.clone()
    other[:, 4:] = claim.circles(np.random.default_rng(1), 40, 2)
    for layer, same in ((1, True), (2, True), (3, False)):
        first, second = (claim.draw(np.random.default_rng(2), z, layer) for z in (x, other))
        assert first.std(0) == pytest.approx(1)
        assert np.allclose(first, second) == same


def test_errors_are_those_of_regression() -> None:
    x = claim.circles(np.random.default_rng(0), 30, 4)
    y = np.random.default_rng(1).standard_normal((30, 2))
    k = claim.gram(x, [2, 2, 2], 20)
    whole = claim.gram(x, [2, 2, 2], 30)
    for n, error in zip((5, 20), claim.curve(k, y, (5, 20))):
        found = whole[20:, :n] @ np.linalg.inv(whole[:n, :n]) @ y[:n]
        assert error == pytest.approx(((y[20:] - found) ** 2).mean(), rel=1e-6)
