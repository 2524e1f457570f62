from __future__ import annotations

import numpy as np
import pytest

from layerwright.claims import deep_kernel_machines as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.deep_kernel_machine import process

GOOD = {
    "error_ratio": -0.1, "dense_ratio": 0.0, "gain": 0.5, "turned": 0.3,
    "wide_difference": 1e-4, "wide_moved": 1e-4, "shuffled": 1.0,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"samples": 60, "steps": 3})
    monkeypatch.setattr(claim, "NOISES", (0.1, 1.0))
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["gain"] > 0
    assert verdict.measured["wide_moved"]["met"] is True
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for wrong in ({"error_ratio": 0.1}, {"dense_ratio": 0.1}, {"gain": -0.1}, {"turned": 0.0}):
        assert verdict_of(**wrong) == "fails"
        for control in ({"wide_difference": 0.1}, {"wide_moved": 0.1}, {"shuffled": 0.5}):
            assert verdict_of(**control, **wrong) == "inconclusive"


def test_tasks_are_centred_and_scaled_by_the_samples_fitted_to_and_differ_by_seed() -> None:
    made = {name: (x, y) for name, x, y in claim.tasks(0, 50)}
    assert tuple(made) == claim.TASKS
    for x, y in made.values():
        assert len(x) == len(y) > 400
        assert float(x[:50].mean(0).abs().max()) < 1e-12
        assert x[:50].square().mean() == pytest.approx(1)
        assert y[:50].square().mean(0).tolist() == pytest.approx([1] * y.shape[1])
    other = {name: x for name, x, _ in claim.tasks(1, 50)}
    assert not any(np.array_equal(made[name][0], other[name]) for name in claim.TASKS)


def test_the_machine_of_the_highest_objective_is_taken() -> None:
    _, x, y = next(iter(claim.tasks(0, 60)))
    machines = [process(x[:60], y[:60], noise=noise) for noise in (1e-5, 0.1, 30.0)]
    assert claim.best(machines) is max(machines, key=lambda m: float(m.objective()))
    assert claim.best(machines).noise == 0.1
