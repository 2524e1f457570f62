from __future__ import annotations

import math

import numpy as np
import pytest

import layerwright as lw
from layerwright.maths.random_features import risk

SMALL = {"samples": 50, "features": 40, "modes": 100}


def test_a_spectrum_of_ones_own() -> None:
    values, coefficients = np.array([1.0, 0.5, 0.1]), np.array([1.0, -1.0, 0.5])
    options = {"ridge": 0.3, "noise": 0.2, "samples": 20, "features": 9}
    found = lw.predict("random_features", {"eigenvalues": values, "coefficients": coefficients}, **options)
    expected = risk(values, coefficients**2, 20, 9, 0.3, 0.2)
    assert found["test_error"] == pytest.approx(expected.test)
    assert found["fitting_ratio"] == pytest.approx(expected.train / expected.test)
    assert found.notes == []


def test_the_best_ridge_is_taken_and_said() -> None:
    found = lw.predict("random_features", **SMALL)
    assert found["ridge"] == found["best_ridge"]
    assert found["test_error"] == found["best_test_error"]
    assert "the ridge is the best one" in found.notes[0]
    assert lw.predict("random_features", ridge=found["ridge"] * 3, **SMALL)["test_error"] > found["test_error"]
    assert found["test_error_of_twice_the_data"] < found["test_error"]
    assert found["test_error_of_twice_the_features"] < found["test_error"]


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({}, {"ridge": 0.0}, "a ridge above 0"), ({}, {"samples": 0}, "samples=0"), ({}, {"noise": -1}, "noise=-1"),
        ({}, {"modes": 0}, "modes=0"), ({"eigenvalues": np.ones(3), "coefficients": np.ones(2)}, {}, "of one length"),
        ({"eigenvalues": np.array([1.0, 0.0])}, {}, "above 0"),
        ({"eigenvalues": np.array([1.0, np.nan])}, {}, "finite"),
        ({"eigenvalues": np.ones((2, 2))}, {}, "of one length"), ({}, {"samples": "many"}, "samples=many"),
        ({}, {"samples": math.inf}, "samples=inf"), ({}, {"noise": math.nan}, "noise=nan"),
        ({}, {"features": 1e308}, "all below 1e15"), ({}, {"ridge": 1e308}, "all below 1e15"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("random_features", arrays, **options)
