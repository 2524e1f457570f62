from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerwright.maths.spectrum import effective_rank, singular_values, stable_rank


def matrix(rows: int = 9, columns: int = 5) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (1, 4)])
def test_values_are_those_of_an_svd(shape: tuple[int, int]) -> None:
    x = matrix(*shape)
    torch.testing.assert_close(singular_values(x), torch.linalg.svdvals(x.double()), rtol=1e-10, atol=1e-10)


def test_small_values_down_to_a_hundred_millionth_of_the_largest() -> None:
    values = torch.tensor([1.0, 1e-3, 1e-6, 3e-8]).double()
    left, right = (
        torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(k)).double()).Q for k in (0, 1)
    )
    torch.testing.assert_close(singular_values(left @ values.diag() @ right), values, rtol=0.1, atol=0)


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(torch.ones(7)).item() == pytest.approx(7)
    assert stable_rank(torch.ones(7)).item() == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])).item() == pytest.approx(1)
    assert stable_rank(torch.tensor([5.0, 0.0, 0.0])).item() == pytest.approx(1)
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(1.5)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([3.0, 1.0])).item() == pytest.approx(expected)


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_ranks_do_not_see_the_scale(rank) -> None:
    values = singular_values(matrix())
    for scale in (1e-8, 1e8):
        torch.testing.assert_close(rank(scale * values), rank(values))


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_ranks_lie_between_one_and_the_number_of_values(rank) -> None:
    assert 1 <= rank(singular_values(matrix())) <= 5


@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_a_zero_matrix_has_rank_zero(rank) -> None:
    assert rank(singular_values(torch.zeros(3, 4))) == 0
