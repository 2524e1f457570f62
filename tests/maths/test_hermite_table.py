"""Hermite coefficients as functions of the norm, against quadrature for each norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from layerwright.maths.activation import Activation, activation
from layerwright.maths.hermite import hermite_coefficients
from layerwright.maths.hermite_table import Series, diagonals, series


def series_of(phi: Activation, q: Tensor) -> Series:
    return series(phi, q, torch.stack([phi.diagonal(q), phi.diagonal_derivative(q)]))


@pytest.mark.parametrize("name", ["tanh", "silu", "mish"])
@pytest.mark.parametrize("low, high", [(0.9, 1.1), (0.0, 4.0), (1e-4, 900.0)])
def test_polynomials_in_the_norm_meet_quadrature(name: str, low: float, high: float) -> None:
    phi, q = activation(name), torch.linspace(low, high, 60, dtype=torch.float64)
    found = series_of(phi, q)
    assert found.range is not None
    assert phi.derivative is not None
    for part, function in enumerate((phi.function, phi.derivative)):
        exact = hermite_coefficients(function, q[::7], 256).T
        torch.testing.assert_close(found.at(q[::7], 256)[part], exact, rtol=0, atol=1e-11 * float(exact.abs().max()))


def test_few_norms_and_one_norm_have_quadratures_of_their_own() -> None:
    phi = activation("tanh")
    for q in (torch.tensor([0.5, 2.0]).double(), torch.full((100,), 0.7).double()):
        found = series_of(phi, q)
        assert found.range is None
        torch.testing.assert_close(found.at(q[:2], 20)[0].T, phi.coefficients(q[:2], 20), rtol=0, atol=0)


def test_a_kinked_function_is_followed_too() -> None:
    phi, q = activation(functional.elu), torch.linspace(0.1, 5.0, 40, dtype=torch.float64)
    torch.testing.assert_close(series_of(phi, q).at(q, 64)[0].T, phi.coefficients(q, 64), rtol=0, atol=1e-12)


def test_small_correlations_need_few_terms() -> None:
    q = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)
    found = series_of(activation("tanh"), q)
    terms = [found.enough(found, rho, 1e-14) for rho in (0.0, 0.3, 0.9, 1.0)]
    assert terms == sorted(terms)
    assert terms[0] == 1
    assert terms[1] < 24
    assert terms[-1] > 64
    assert found.enough(found, 0.9, 1e-6) < terms[2]


@pytest.mark.parametrize("given", ["tanh", "silu", functional.elu])
@pytest.mark.parametrize("low, high", [(0.9, 1.1), (0.1, 9.0), (1e-4, 900.0)])
def test_diagonals_of_many_norms_are_those_of_each(given: str, low: float, high: float) -> None:
    phi, q = activation(given), torch.linspace(low, high, 60, dtype=torch.float64)
    found = diagonals(phi, q)
    for part, exact in zip(found, (phi.diagonal(q), phi.diagonal_derivative(q))):
        torch.testing.assert_close(part, exact, rtol=1e-13, atol=0)
    few = diagonals(phi, q[:5].float())
    assert few.dtype == torch.float32
    torch.testing.assert_close(few.double(), found[:, :5], rtol=1e-6, atol=0)
