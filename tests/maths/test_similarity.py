from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerwright.maths.similarity import angle, cosine, relative_error, relative_norm


def pairs(n: int = 200, width: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=generator).double(), torch.randn(n, width, generator=generator).double()


def rotation(width: int = 7) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)).double()).Q


def test_hand_values() -> None:
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert relative_norm(x, y) == 2.5
    assert cosine(x, y) == pytest.approx(0.8)
    assert angle(x, y) == pytest.approx(math.acos(0.8) / math.pi, rel=1e-6)


def test_against_plain_formulas() -> None:
    x, y = pairs()
    cos = torch.tensor(
        [float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5 for a, b in zip(x, y, strict=True)]
    ).double()
    torch.testing.assert_close(cosine(x, y), cos, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(angle(x, y), cos.arccos() / math.pi, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(relative_norm(x, y), x.square().sum(-1).sqrt() / y.square().sum(-1).sqrt())


@pytest.mark.parametrize("function", [cosine, angle, relative_norm])
def test_turning_both_changes_nothing(function) -> None:
    x, y = pairs()
    turn = rotation()
    torch.testing.assert_close(function(x @ turn, y @ turn), function(x, y))


@pytest.mark.parametrize("function", [cosine, angle])
def test_lengths_do_not_matter(function) -> None:
    x, y = pairs()
    torch.testing.assert_close(function(1e3 * x, 1e-3 * y), function(x, y))


@pytest.mark.parametrize("theta", [1e-6, 1e-3, 0.5, 3.0])
def test_angles_are_exact_also_where_arccos_is_not(theta: float) -> None:
    x = torch.tensor([1.0, 0.0], dtype=torch.float32)
    y = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float32)
    assert angle(x, y).item() * math.pi == pytest.approx(theta, rel=1e-5)
    assert angle(x, -y).item() * math.pi == pytest.approx(math.pi - theta, rel=1e-5)


def test_zero_vectors_are_defined() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    for x, y in ((zero, one), (one, zero), (zero, zero)):
        assert cosine(x, y) == 0.0
        assert angle(x, y) == 0.5
    assert relative_norm(zero, zero) == 0.0
    assert relative_norm(zero, one) == 0.0
    assert relative_norm(one, zero) == pytest.approx(math.sqrt(3) * 1e6)  # the floor of the published code


def test_nan_stays_nan() -> None:
    bad = torch.tensor([torch.nan, 1.0])
    for function in (cosine, angle, relative_norm):
        assert function(bad, torch.ones(2)).isnan()
        assert function(torch.ones(2), bad).isnan()


def test_large_and_small_numbers() -> None:
    x = torch.tensor([3e18, 4e18])
    assert cosine(x, x) == pytest.approx(1.0)
    assert angle(x, x) == pytest.approx(0.0, abs=1e-4)
    assert angle(x * 1e-36, -x) == pytest.approx(1.0, abs=1e-4)


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0])) == torch.inf
    assert relative_error(torch.tensor([1.0, 7.0]), torch.tensor([1.0, torch.nan])) == 0.0
    assert relative_error(torch.tensor([torch.nan]), torch.tensor([torch.inf])) == 0.0
