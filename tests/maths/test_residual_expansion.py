from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import pytest
import torch
from torch import Tensor

from layerwright.maths.residual_expansion import residual_expansion, taylor, truncations

Branch = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def smooth(blocks: int, width: int = 6, scale: float = 0.5) -> list[Branch]:
    """Branches B tanh(A norm(x))."""

    def branch(k: int) -> Branch:
        a, b = draw(2, width, width, seed=k) * scale
        return lambda x: torch.tanh(x @ a / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()) @ b

    return [branch(k) for k in range(blocks)]


def tower(branches: list[Branch], z: Tensor, strength: Tensor | float) -> Tensor:
    for branch in branches:
        z = z + strength * branch(z)
    return z


def test_linear_branches_give_the_products_of_all_subsets() -> None:
    maps = draw(5, 4, 4)
    z = draw(3, 4, seed=1)
    found = residual_expansion([lambda x, m=m: x @ m for m in maps], z, order=6)
    for k in range(6):
        paths = [torch.linalg.multi_dot([z, *(maps[i] for i in path)]) if path else z
                 for path in combinations(range(5), k)]  # fmt: skip
        assert len(paths) == comb(5, k)
        torch.testing.assert_close(found[k], torch.stack(paths).sum(0), rtol=1e-12, atol=1e-12)
    assert found[6].abs().max() < 1e-12  # no path goes through more branches than there are
    torch.testing.assert_close(found.sum(0), tower([lambda x, m=m: x @ m for m in maps], z, 1.0))


def test_equal_scalar_branches_count_their_paths() -> None:
    found = residual_expansion([lambda x: x / 2] * 7, torch.ones(1).double(), order=4)
    assert found.flatten().tolist() == pytest.approx([comb(7, k) / 2**k for k in range(5)])


def test_it_is_the_series_of_the_whole_tower_in_its_strength() -> None:
    """Derivatives by λ of the tower in one piece, at one place after another."""
    branches, z = smooth(4), draw(2, 6, seed=9)
    found, strength = residual_expansion(branches, z, order=4), torch.zeros((), dtype=torch.float64, requires_grad=True)
    for place, number in enumerate(tower(branches, z, strength).flatten()):
        factorial = 1
        for k in range(5):
            assert found[k].flatten()[place].item() == pytest.approx(number.item() / factorial, rel=1e-9, abs=1e-12)
            (number,) = torch.autograd.grad(number, strength, create_graph=True)
            factorial *= k + 1


def test_finite_differences_in_the_strength_agree() -> None:
    branches, z, h = smooth(5), draw(2, 6, seed=3), 1e-3
    found = residual_expansion(branches, z, order=2)
    up, down = tower(branches, z, h), tower(branches, z, -h)
    torch.testing.assert_close(found[1], (up - down) / (2 * h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], (up - 2 * z + down) / (2 * h * h), rtol=1e-4, atol=1e-4)


def test_what_a_truncation_leaves_is_of_the_next_order() -> None:
    """Branches half as strong leave 2^(k+1) times less after order k, and so 4^k times less of what is added."""
    z, left = draw(4, 6, seed=5), []
    for strength in (0.02, 0.01):
        branches = [lambda x, f=f, s=strength: s * f(x) for f in smooth(6)]
        explained = truncations(residual_expansion(branches, z), tower(branches, z, 1.0)).explained
        left.append(1 - explained.mean(-1))
    assert torch.equal(left[0][:1], torch.ones(1).double())
    assert (left[0] / left[1])[1:].tolist() == pytest.approx([4.0, 16.0, 64.0], rel=0.15)


def test_the_first_order_is_all_blocks_side_by_side() -> None:
    branches, z = smooth(3), draw(2, 6)
    torch.testing.assert_close(residual_expansion(branches, z, order=1)[1], sum(f(z) for f in branches))


def test_the_order_asked_for_changes_none_below_it() -> None:
    branches, z = smooth(3), draw(2, 6)
    many = residual_expansion(branches, z, order=4)
    torch.testing.assert_close(residual_expansion(branches, z, order=2), many[:3])


def test_a_branch_that_is_one_number_or_nothing() -> None:
    z = draw(2, 3)
    found = residual_expansion([lambda x: torch.full_like(x, 2.0), torch.zeros_like], z, order=2)
    assert torch.equal(found[1], torch.full_like(z, 2.0))
    assert not found[2].any()


def test_series_of_known_functions() -> None:
    x = [torch.tensor(v).double() for v in (0.3, 1.0, 0.0, 0.0, 0.0)]
    sine = [f(x[0]) / n for f, n in ((torch.sin, 1), (torch.cos, 1), (torch.sin, -2), (torch.cos, -6), (torch.sin, 24))]
    torch.testing.assert_close(torch.stack(taylor(torch.sin, x)), torch.stack(sine))
    square = taylor(torch.square, [torch.tensor(v).double() for v in (1.0, 2.0, 3.0)])
    assert [float(v) for v in square] == [1.0, 4.0, 10.0]


def test_rotations_turn_every_order() -> None:
    turn = torch.linalg.qr(draw(6, 6, seed=8)).Q
    weights = draw(3, 6, 6, seed=2) / 3
    branches = [lambda x, w=w: torch.tanh(x @ w) for w in weights]
    turned = [lambda x, w=w: torch.tanh(x @ turn.T @ w) @ turn for w in weights]
    z = draw(2, 6)
    torch.testing.assert_close(residual_expansion(turned, z @ turn), residual_expansion(branches, z) @ turn)


def test_a_tower_that_adds_nothing_has_no_shares() -> None:
    found = truncations(torch.stack([torch.ones(2), torch.zeros(2)]), torch.ones(2))
    assert found.energy.isnan().all()
    assert found.explained.isnan().all()


@pytest.mark.parametrize(("z", "order"), [(torch.ones(2), 0), (torch.ones(2, dtype=torch.long), 2)])
def test_what_has_no_series_is_refused(z: Tensor, order: int) -> None:
    with pytest.raises(ValueError, match="expected an order from 1 on, and floating numbers"):
        residual_expansion([torch.square], z, order)
