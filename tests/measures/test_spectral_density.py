from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from zoo import gpt2, token_ids

import layerwright as lw
from layerwright.maths.lanczos import Quadrature
from layerwright.measures.spectral_density import spectral_density


def curve(h: Tensor, name: str = "hessian", **options: float) -> dict[str, Tensor]:
    """Columns of one matrix."""
    matrix = SimpleNamespace(product=lambda v: h.double() @ v, size=len(h), seed=0)
    found = spectral_density(matrix, matrix, **options)  # type: ignore[arg-type]
    count = len({place for _, place, _ in found})
    quantities = ("eigenvalue", "density", "density_error")
    return {q: torch.stack([found[name, k, q] for k in range(count)]) for q in quantities}


def test_hand_values() -> None:
    found = curve(torch.diag(torch.tensor([0.0, 0.0, 1.0, 2.0])), width=0.05)
    x, y, sigma = found["eigenvalue"], found["density"], 0.1
    expected = sum(s * torch.exp(-0.5 * ((x - at) / sigma) ** 2) for at, s in ((0.0, 0.5), (1.0, 0.25), (2.0, 0.25)))
    torch.testing.assert_close(y, expected / (math.sqrt(2 * math.pi) * sigma))
    assert float(torch.trapezoid(y, x)) == pytest.approx(1.0, abs=1e-5)
    assert (float(x[0]), float(x[-1])) == pytest.approx((-0.5, 2.5))
    assert (found["density_error"] == 0).all()


def test_a_matrix_of_zeros_is_one_bump() -> None:
    found = curve(torch.zeros(4, 4))
    assert float(torch.trapezoid(found["density"], found["eigenvalue"])) == pytest.approx(1.0, abs=1e-5)
    assert float(found["eigenvalue"][found["density"].argmax()]) == pytest.approx(0.0, abs=1e-9)


def test_of_many_weights_the_bulk_and_its_error() -> None:
    draw = torch.randn(600, 600, generator=torch.Generator().manual_seed(0)).double()
    h = (draw + draw.T) / math.sqrt(8 * 600)  # Wigner's semicircle of radius 1
    found = curve(h, probes=16)
    x, y, error = found.values()
    assert float(torch.trapezoid(y, x)) == pytest.approx(1.0, abs=1e-5)
    values = torch.linalg.eigvalsh(h)
    sigma = 0.02 * float(values[-1] - values[0])
    exact = Quadrature(values[None], torch.full((1, 600), 1 / 600).double()).density(x, sigma)[0]
    away = (y - exact).abs()
    assert (away <= 2 * error + 1e-3 * exact.max()).double().mean() > 0.85
    assert away.max() < 0.15 * exact.max()
    inside = x.abs() < 0.85
    semicircle = 2 / math.pi * (1 - x[inside].square()).sqrt()
    assert float((y[inside] - semicircle).square().mean().sqrt()) < 0.05
    assert 0 < float(error.max()) < 0.1
    moments = [float(torch.trapezoid(x**p * y, x)) for p in (1, 2)]
    assert moments[0] == pytest.approx(float(values.mean()), abs=0.02)
    assert moments[1] == pytest.approx(float(values.square().mean()) + sigma**2, rel=0.05)


def test_scale() -> None:
    h = torch.diag(torch.tensor([0.0, 0.5, 1.0, -2.0]))
    base, other = curve(h), curve(10 * h)
    torch.testing.assert_close(other["eigenvalue"], 10 * base["eigenvalue"])
    torch.testing.assert_close(other["density"], base["density"] / 10)


def test_in_a_survey() -> None:
    options = {"spectral_density": {"points": 61, "steps": 12, "probes": 3}}
    data = {"input_ids": token_ids(2, 8)}
    survey = lw.survey(gpt2(num_hidden_layers=2), data, only=["spectral_density"], options=options)
    frame = survey["spectral_density"]
    assert frame.attrs["index"] == ["blocks", "operator", "place", "quantity"]
    assert len(frame) == 3 * 2 * 61 * 3
    for (blocks, operator), rows in frame.groupby(["blocks", "operator"]):
        wide = rows.pivot(index="place", columns="quantity", values="value")
        assert float(torch.trapezoid(*map(torch.tensor, (wide.density.values, wide.eigenvalue.values)))) == (
            pytest.approx(1.0, abs=1e-4)
        ), (blocks, operator)
        assert (wide.density_error >= 0).all()
        if operator == "gauss_newton":
            below = wide[wide.eigenvalue < -4 * (wide.eigenvalue.max() - wide.eigenvalue.min()) / 60]
            assert below.density.max() < 0.01 * wide.density.max()
