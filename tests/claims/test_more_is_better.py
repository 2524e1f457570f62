from __future__ import annotations

import numpy as np
import pytest

from layerwright.claims import more_is_better as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.random_features import risk

GOOD = {
    "formula_error": 0.02, "train_formula_error": 0.05, "feature_step": -0.02, "data_step": -0.05,
    "fitting_ratio": 0.0, "cost": 0.8, "digit_formula_error": 0.05, "digit_feature_step": -0.1,
    "digit_data_step": -0.1, "digit_fitting_ratio": 0.0, "digit_cost": 0.9, "untuned_step": 3.0, "noisy_ratio": 0.4,
    "digit_noisy_ratio": 0.2,
}  # fmt: skip


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"samples": 16, "draws": 1, "doublings": 2, "digit_draws": 1})
    monkeypatch.setattr(claim, "MODES", 60)
    monkeypatch.setattr(claim, "VALUES", claim.VALUES[:60])
    monkeypatch.setattr(claim, "SQUARES", claim.SQUARES[:60])
    monkeypatch.setattr(claim, "KERNEL_SAMPLES", 30)
    monkeypatch.setattr(claim, "load_digits", few_digits)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.measured["fitting_ratio"]["met"] is True
    assert verdict.figure is not None
    assert verdict.figure.count("stroke-dasharray") == 2


def few_digits(**_: bool) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images[:90], labels[:90]


def test_the_verdict_on_made_numbers() -> None:
    def word(**changes: float) -> str:
        trial = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
        return judge("", [trial, {n: x + 1e-9 for n, x in trial.items()}], claim.EXPECTED, conditions={}).word

    assert word() == "holds"
    for wrong in ({"formula_error": 0.2}, {"feature_step": 0.01}, {"data_step": 0.01}, {"fitting_ratio": 0.3},
                  {"digit_cost": 0.1}, {"digit_formula_error": 0.3}):  # fmt: skip
        assert word(**wrong) == "fails"
    for control in ({"untuned_step": -0.1}, {"noisy_ratio": 0.01}, {"digit_noisy_ratio": 0.01}):
        assert word(feature_step=0.01, **control) == "inconclusive"


def test_regression_is_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    features, new, y, answers = (rng.standard_normal(shape) for shape in ((6, 4), (5, 4), (6, 2), (5, 2)))
    test, train = claim.regress(features @ features.T, new @ features.T, y, answers)
    for k in (0, 20, 36):
        w = np.linalg.solve(features.T @ features + claim.RIDGES[k] * np.eye(4), features.T @ y)
        assert test[k] == pytest.approx(((answers - new @ w) ** 2).sum(), rel=1e-5)
        assert train[k] == pytest.approx(((y - features @ w) ** 2).sum() / 6, rel=1e-5)


def test_errors_on_gaussian_tasks_are_over_all_new_samples() -> None:
    rng = np.random.default_rng(0)
    task = claim.Gaussians(0.3)
    x, y = task.data(20, 0.3, rng)
    maps = np.diag(claim.VALUES**0.5)
    found = task.errors(x, y, maps, 0.3)[0, 24]
    features = x @ maps
    dual = np.linalg.solve(features @ features.T + claim.RIDGES[24] * np.eye(20), y)
    new, answers = task.data(3000, 0.3, rng)
    errors = (answers - new @ maps @ features.T @ dual) ** 2
    assert abs(errors.mean() - found) < 3 * errors.std() / 3000**0.5


def test_the_spectrum_of_digits_holds_all_of_their_targets(monkeypatch) -> None:
    monkeypatch.setattr(claim, "load_digits", few_digits)
    task = claim.Digits()
    assert task.squares.sum() == pytest.approx((task.y**2).sum(1).mean(), rel=1e-3)
    assert task.values.sum() == pytest.approx(np.trace(task.limit) / len(task.x))
    draw = task.draw(30, 20000, np.random.default_rng(0))
    np.testing.assert_allclose(draw(30, 20000)[:, 24], draw(30, np.inf)[:, 24], rtol=0.05)


@pytest.mark.parametrize("task_decay, ratio", [(1.6, 0.0), (1.2, 0.25)])
def test_the_best_ridge_fits_where_the_exponents_say(task_decay: float, ratio: float) -> None:
    """With s² the ratio, log error is −(β − 1) log(1 − s) − log(1 + (α − 1) s): least at s = 0 for β ≥ α, else inside.

    For many samples of a task that goes on for ever: to leading order in what is left of the modes.
    """
    i = np.arange(1, 200001.0)
    values, squares = i**-1.5, i**-task_decay
    squares[-1] += i[-1] ** (1 - task_decay) / (task_decay - 1)  # all modes that follow
    errors = [risk(values, squares, 300, np.inf, ridge) for ridge in np.geomspace(1e-6, 0.3, 60)]
    best = min(errors, key=lambda found: found.test)
    assert best.train / best.test == pytest.approx(ratio, abs=0.03)
