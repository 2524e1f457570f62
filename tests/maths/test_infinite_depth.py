"""The class of an activation, and the activation of a class."""

from __future__ import annotations

import math

import pytest
import torch

from layerwright.maths.activation import activation
from layerwright.maths.infinite_depth import limit
from layerwright.maths.optimal_activation import optimal, sine_frequency


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hermite:2", "nearest neighbour"), ("hermite:3", "nearest neighbour"), ("relu", "majority, slowly"),
        ("leaky_relu:0.1", "majority, slowly"), ("gelu", "majority"), ("squared_relu", "majority"),
        ("step", "majority"), ("tanh", "singular kernel"), ("erf", "singular kernel"), ("sign", "singular kernel"),
        ("sigmoid", "constant kernel"), ("cos", "constant kernel"), ("softplus", "constant kernel"),
        ("linear", "unchanged"),
    ],
)  # fmt: skip
def test_the_class_of_each(name: str, expected: str) -> None:
    assert limit(activation(name)).name == expected


def test_the_numbers_of_erf_by_hand() -> None:
    """κ(ρ) = asin(2ρ/3) / asin(2/3)."""
    found = limit(activation("erf"))
    scale = math.asin(2 / 3)
    assert found.slope_at_zero == pytest.approx(2 / 3 / scale)
    assert found.slope_at_one == pytest.approx(2 / 3 / scale / math.sqrt(1 - 4 / 9))
    assert found.exponent == pytest.approx(-math.log(found.slope_at_zero) / math.log(found.slope_at_one))
    assert limit(activation("sign")).exponent == 0, "weaker than any power, as it jumps"
    assert math.isnan(limit(activation("relu")).exponent)


def test_the_class_may_change_with_the_variance_of_the_units() -> None:
    """κ(ρ) = e^(−q(1 − ρ)) and B′ = q."""
    names = [limit(activation("rbf:0.5"), q).name for q in (0.5, 1.0, 2.0)]
    assert names == ["constant kernel", "majority, slowly", "majority"]


@pytest.mark.parametrize("dimension", [0.5, 0.8, 1.0, 1.7, 2.0, 2.5, 3.0, 4.0, 8.0, 20.0])
def test_the_optimal_activation_has_half_the_dimension_as_its_exponent(dimension: float) -> None:
    found = limit(activation(optimal(dimension)))
    assert found.name == "singular kernel"
    assert found.exponent == pytest.approx(dimension / 2)


@pytest.mark.parametrize(
    "dimension, shares",
    [
        (1, [0, 0.5, 0, 0, 0, 0, 0, 0.5]), (2, [0, 0.5, 0, 0.5]), (4, [0, 0.25, 0.5, 0.25]),
        (8, [0, 1 / 16, 7 / 8, 1 / 16]),
    ],
)  # fmt: skip
def test_where_the_papers_code_has_one_it_is_the_same(dimension: float, shares: list[float]) -> None:
    found = activation(optimal(dimension)).coefficients(1.0, len(shares)).square()
    torch.testing.assert_close(found, torch.tensor(shares, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dimension", [1.2, 2.0, 4.0, 8.0])
def test_a_sine_does_the_same(dimension: float) -> None:
    found = limit(activation(f"sin:{sine_frequency(dimension)}"))
    assert found.exponent == pytest.approx(dimension / 2)


def test_the_optimal_activation_stands_in_a_tower() -> None:
    from layerwright.theories.towers import Act, Dense, tower

    x = torch.tensor([[1.0, 1.0], [2**0.5, 0.0]], dtype=torch.float64)
    found = tower([Dense(), Act(optimal(2)), Dense()]).kernel(x)
    rho = 0.5**0.5
    torch.testing.assert_close(found.nngp[0, 1], torch.tensor(0.5 * rho + 0.5 * rho**3, dtype=torch.float64))
    assert activation(optimal(2.5)).name == "optimal:2.5"


@pytest.mark.parametrize("make, wrong", [(optimal, 0.4), (optimal, math.nan), (sine_frequency, 1.0)])
def test_dimensions_that_cannot_be(make, wrong: float) -> None:
    with pytest.raises(ValueError, match=f"got dimension {wrong}"):
        make(wrong)


def test_an_activation_that_is_zero_has_no_class() -> None:
    with pytest.raises(ValueError, match="is 0 at variance 1"):
        limit(activation(torch.zeros_like))
