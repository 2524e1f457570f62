"""Power laws: exact ones, another library's fit, the coverage of the interval, and what cannot be fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from layerwright.maths.power_laws import fit_power_law, tail_exponent

X = np.geomspace(10, 1000, 8)


@pytest.mark.parametrize("exponent, floor", [(0.1, 0.0), (0.5, 0.2), (1.0, 3.0), (4.0, 1e-3)])
def test_a_law_without_noise_is_found(exponent: float, floor: float) -> None:
    y = floor + 2 * X**-exponent
    found, known = fit_power_law(X, y), fit_power_law(X, y, floor=floor)
    for law in (found, known):
        assert law.exponent == pytest.approx(exponent, rel=1e-6)
        assert law.low <= exponent * (1 + 1e-9)
        assert law.high >= exponent * (1 - 1e-9)
        assert law.high - law.low < 1e-4
        assert law.at(50.0) == pytest.approx(floor + 2 * 50.0**-exponent)
    assert found.floor == pytest.approx(floor, abs=1e-6)
    assert known.floor == floor


def noisy(seed: int, floor: float = 0.2, exponent: float = 0.5) -> np.ndarray:
    return (floor + 3 * X**-exponent) * np.exp(0.02 * np.random.default_rng(seed).standard_normal(8))


def test_it_is_the_least_squares_fit() -> None:
    for seed in range(3):
        y = noisy(seed)
        found = fit_power_law(X, y)
        by_scipy, _ = curve_fit(lambda x, f, c, a: f + c * x**-a, X, y, p0=(0.2, 3, 0.5), sigma=y, bounds=(0, 9))
        assert (found.floor, found.scale, found.exponent) == pytest.approx(tuple(by_scipy), rel=1e-3)


@pytest.mark.parametrize("floor, known", [(0.2, None), (0.0, 0.0)])
def test_the_interval_holds_the_exponent_as_often_as_it_says(floor: float, known: float | None) -> None:
    laws = [fit_power_law(X, noisy(seed, floor), known, confidence=0.8) for seed in range(150)]
    share = np.mean([law.low <= 0.5 <= law.high for law in laws])
    assert abs(share - 0.8) < 3 * math.sqrt(0.8 * 0.2 / 150)


def test_units_do_not_matter() -> None:
    found, other = fit_power_law(X, noisy(0)), fit_power_law(1e6 * X, 1e-3 * noisy(0))
    assert other.exponent == pytest.approx(found.exponent)
    assert (other.low, other.high) == pytest.approx((found.low, found.high))
    assert other.floor == pytest.approx(1e-3 * found.floor)


def test_ends_that_nothing_fixes_are_open() -> None:
    drop = fit_power_law(np.array([1.0, 2, 4, 8]), np.array([2.0, 1, 1, 1]))
    assert drop.high == math.inf
    flat = 1 + 1e-3 * np.random.default_rng(0).standard_normal(8) - 1e-4 * np.log(X)
    assert fit_power_law(X, flat).low == 0.0


@pytest.mark.parametrize(
    "x, y, floor, words",
    [
        ([1, 2, 3], [3, 2, 1], None, "3 different sizes; expected at least 4"),
        ([1, 2, 2, 2], [3, 2, 2, 2], 0.0, "2 different sizes; expected at least 3"),
        ([1, 2, 3, 4], [3, 2, 1], None, "of one length"), ([0, 2, 3, 4], [4, 3, 2, 1], None, "not above 0"),
        ([1, 2, 3, 4], [4, 3, 2, -1], None, "not above 0"), ([1, 2, 3, 4], [4, 3, 2, np.nan], None, "not finite"),
        ([1, 2, 3, 4], [4, 3, 2, 1], 1.0, "a floor of 1"), ([1, 2, 3, 4], [1, 2, 3, 4], None, "do not fall"),
    ],
)  # fmt: skip
def test_what_no_law_is_fitted_to(x: list, y: list, floor: float | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_power_law(np.array(x), np.array(y), floor)


def test_the_tail_of_a_noisy_spectrum() -> None:
    ranks = np.arange(1, 2001.0)
    for exponent in (0.2, 1.0):
        values = ranks ** -(1 + exponent) * np.random.default_rng(0).chisquare(1, 2000)
        assert tail_exponent(values, 20, 2000) == pytest.approx(exponent, abs=0.1)
        assert tail_exponent(5 * ranks ** -(1 + exponent), 20, 2000) == pytest.approx(exponent, abs=0.01)


@pytest.mark.parametrize("values, ranks", [(np.ones(9), (0, 5)), (np.ones(9), (3, 10)), (np.zeros(9), (1, 9)),
                                           (np.ones(9), (4, 4))])  # fmt: skip
def test_a_spectrum_without_a_tail(values: np.ndarray, ranks: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        tail_exponent(values, *ranks)
