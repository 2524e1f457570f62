from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import linear_collapse_geometry as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

TASK = claim.Task((8, 4, 2), 2, 0.01, 1e-3)
GOOD = {
    "row_error": 0.001, "feature_error": 0.001, "angle": 0.001, "alignment": 0.999, "within": 0.001, "survival": 1.0,
    "digit_row_error": 0.01, "digit_feature_error": 0.01, "digit_angle": 0.01, "digit_within": 0.01,
    "balanced_error": 0.5, "gradient": 1e-7, "accuracy": 1.0, "vanishing": 0.5,
}  # fmt: skip


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"starts": 1, "iterations": 10, "steps": 20})
    monkeypatch.setattr(claim, "DEPTHS", (1,))
    monkeypatch.setattr(claim, "SMALLEST", (2, 12))
    monkeypatch.setattr(claim, "COUNTS", (6, 3))
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert verdict.measured["vanishing"]["value"] == 0.5
    assert verdict.holds is not True, "ten steps reach no minimum, and twenty no digits"
    assert verdict.figure is not None
    assert verdict.figure.count("stroke-dasharray") == 2


def test_the_verdict_on_made_numbers() -> None:
    def word(**changes: float) -> str:
        trial = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
        return judge("", [trial, {n: x + 1e-9 for n, x in trial.items()}], claim.EXPECTED, conditions={}).word

    assert word() == "holds"
    for wrong in ({"row_error": 0.1}, {"angle": 0.1}, {"alignment": 0.5}, {"survival": 0.9}, {"digit_row_error": 0.5}):
        assert word(**wrong) == "fails"
    for control in ({"balanced_error": 0.0}, {"gradient": 1e-3}, {"accuracy": 0.9}, {"vanishing": 1.0}):
        assert word(row_error=0.1, **control) == "inconclusive"


def made(task: claim.Task) -> claim.End:
    """The geometry that is predicted, in the first coordinates."""
    rows, features = (torch.tensor(x).sqrt() for x in task.predicted())
    return claim.End(features.diag()[task.classes()], rows.diag())


def test_the_predicted_geometry_has_no_errors_and_another_has() -> None:
    found = claim.geometry(made(TASK), TASK)
    assert found == pytest.approx({"row_error": 0, "feature_error": 0, "angle": 0, "alignment": 1, "within": 0})
    assert claim.balanced_error(made(TASK), TASK) > 0.1
    features = made(TASK).features
    features[0, 1] += 0.5
    bent = claim.geometry(claim.End(features, made(TASK).product * 2), TASK)
    assert bent["row_error"] == pytest.approx(3.0)
    assert bent["angle"] > 0.05
    _, squares = TASK.predicted()
    total = (np.array(TASK.counts) * squares).sum() + 8 * 0.0625**2
    assert bent["within"] == pytest.approx((7 * 0.0625**2 + 0.4375**2) / total)


def test_the_predicted_geometry_is_a_minimum_of_the_energy() -> None:
    """One matrix: the product is the matrix, and no change of it or of the features makes the energy smaller."""
    task = TASK._replace(matrices=1)
    features, product, *_ = made(task)
    parameters = [features.clone().requires_grad_(), product.clone().requires_grad_()]
    slopes = torch.autograd.grad(task.energy(parameters[0], parameters[1:]), parameters)
    assert max(slope.abs().max() for slope in slopes) < 1e-9


def test_training_finds_the_predicted_geometry() -> None:
    end = claim.lowest(TASK, 1, 300, torch.Generator().manual_seed(0))
    assert end.gradient < 1e-6
    found = claim.geometry(end, TASK)
    assert found["row_error"] < 1e-3
    assert found["within"] < 1e-6


def test_digits_are_as_many_as_asked_for_and_the_network_starts_untrained() -> None:
    after, before, right = claim.digits(2, 0)
    assert len(after.features) == sum(claim.DIGIT_COUNTS)
    assert after.product.shape == (4, claim.WIDTH)
    assert not torch.equal(after.features, before.features)
    assert 0 <= right <= 1
    assert np.isfinite(claim.geometry(after, claim.Task(claim.DIGIT_COUNTS, 2, *claim.DIGIT_DECAYS))["angle"])
