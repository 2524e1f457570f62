"""Depth of vectors in sets of vectors, against the loop over all pairs."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cosine as distance
from torch import Tensor

from layerwright.maths.statistical_depth import depth_among, depth_within


def vectors(n: int, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def naive(x: Tensor, others: list[Tensor]) -> float:
    return 2 - sum(float(distance(x.double().numpy(), y.double().numpy())) for y in others) / len(others)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_in_its_own_set_a_vector_is_held_against_all_others(n: int) -> None:
    x = vectors(n)
    expected = [naive(a, [b for j, b in enumerate(x) if j != i]) for i, a in enumerate(x)]
    assert depth_within(x).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("m", [1, 20, 31])
def test_in_another_set_it_is_held_against_all_of_them(m: int) -> None:
    x, others = vectors(m, seed=1), vectors(20)
    assert depth_among(x, others).tolist() == pytest.approx([naive(a, list(others)) for a in x], abs=1e-12)


def test_sets_of_one_size_are_still_two_sets() -> None:
    """The published code takes a square matrix of distances for that of one set: it gives depths of F among G."""
    f, g = vectors(20), vectors(20, seed=1) * torch.tensor([3.0, 1, 1, 1, 1, 1])
    found, mistaken = depth_among(g, f), depth_among(f, g)
    assert found.tolist() == pytest.approx([naive(a, list(f)) for a in g], abs=1e-12)
    assert (found - mistaken).abs().max() > 0.01
    # One vector more on either side and the shape of the matrix says nothing: the depths stay what they are.
    torch.testing.assert_close(depth_among(torch.cat([g, g[:1]]), f)[:20], found)


def test_lengths_and_rotations_change_nothing() -> None:
    x, others = vectors(20), vectors(9, seed=1)
    turn = torch.linalg.qr(vectors(6, seed=2)).Q
    longer = x * torch.rand(20, 1, generator=torch.Generator().manual_seed(3)).add(0.1)
    torch.testing.assert_close(depth_within(longer @ turn), depth_within(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(depth_among(longer @ turn, others @ turn), depth_among(x, others), atol=1e-6, rtol=0)


def test_a_vector_of_zeros_is_at_right_angles_to_all() -> None:
    x = vectors(5).index_fill(0, torch.tensor(2), 0.0)
    assert depth_within(x)[2] == 1.0
    kept = depth_within(x[[0, 1, 3, 4]])[0]
    assert depth_within(x)[0] == pytest.approx(float(1 + (kept - 1) * 3 / 4))


def test_one_vector_alone_has_no_depth() -> None:
    assert depth_within(vectors(1)).isnan().all()
    assert depth_within(vectors(4).index_fill(0, torch.tensor(1), torch.nan)).isnan().all()
