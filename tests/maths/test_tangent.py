"""Products out of factors against the derivatives themselves, and what makes a kernel like another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from layerwright.maths.alignment import kernel_alignment
from layerwright.maths.kernel_alignment import centred_alignment, target_alignment
from layerwright.maths.patches import patches
from layerwright.maths.tangent import FORMS, Factor, Outer, add_products, by_factors, rows

P, Q = 4, 5


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


KINDS: dict[str, Callable[[int, int, int], Outer]] = {
    "a matrix": lambda o, n, t: Outer(draw(o, n, t, P), draw(n, t, Q)),
    "a turned matrix": lambda o, n, t: Outer(draw(n, t, P), draw(o, n, t, Q)),
    "a table of rows": lambda o, n, t: Outer(torch.randint(P, (n, t)), draw(o, n, t, Q)),
    "a table of columns": lambda o, n, t: Outer(draw(o, n, t, P), torch.randint(Q, (n, t))),
}


def side(x: Tensor, o: int, size: int) -> Tensor:
    """`[n, T, d]` of one output, numbers as rows of the identity."""
    x = x[o] if x.ndim == 4 else x
    return x if x.is_floating_point() else torch.eye(size, dtype=torch.float64)[x]


def naive(uses: list[Outer], outputs: int) -> Tensor:
    """The derivatives `[O, n, p, q]`, one sample and place after another."""
    found = []
    for o in range(outputs):
        total: Tensor | float = 0.0
        for use in uses:
            left, right = side(use.left, o, P), side(use.right, o, Q)
            total = total + torch.stack(
                [sum(torch.outer(a, b) for a, b in zip(*pair)) for pair in zip(left, right)]  # type: ignore[misc]
            )
        found.append(total)
    return torch.stack(found)


def product_of(shape: tuple[int, ...], a: Factor, b: Factor, form: str, diagonal: bool = False) -> Tensor:
    found = torch.zeros(shape, dtype=torch.float64)
    add_products(lambda name: found, {"w": a}, {"w": b}, form, diagonal)
    return found


EINSUM = {
    ("full", False): "oixy,pjxy->oipj", ("each", False): "oixy,ojxy->oij", ("trace", False): "oixy,ojxy->ij",
    ("full", True): "oixy,pixy->oip", ("each", True): "oixy,oixy->oi", ("trace", True): "oixy,oixy->i",
}  # fmt: skip


@pytest.mark.parametrize("diagonal", [False, True], ids=["pairs", "diagonal"])
@pytest.mark.parametrize("form", FORMS)
def test_products_of_factors_are_those_of_derivatives(form: str, diagonal: bool) -> None:
    torch.manual_seed(0)
    for (one, other), (t, s) in itertools.product(itertools.product(KINDS, repeat=2), [(1, 1), (3, 1), (2, 3)]):
        a, b = [KINDS[one](2, 3, t), KINDS[other](2, 3, s)], [KINDS[other](2, 3, s)]
        expected = torch.einsum(EINSUM[form, diagonal], naive(a, 2), naive(b, 2))
        for first, second in ((a, b), (rows(a, (P, Q)), rows(b, (P, Q)))):
            found = product_of(expected.shape, first, second, form, diagonal)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=f"{one}, {other}, {t}, {s}")


def test_groups_meet_their_own_piece_only() -> None:
    torch.manual_seed(0)
    left, right = draw(2, 3, 6, 4), draw(3, 6, 10)
    found = rows([Outer(left, right, groups=2)], (4, 5)).unflatten(-1, (2, 2, 5))
    for g in range(2):
        expected = torch.einsum("oitx,ity->oixy", left[..., 2 * g : 2 * g + 2], right[..., 5 * g : 5 * g + 5])
        torch.testing.assert_close(found[:, :, g], expected)
    with pytest.raises(ValueError, match="groups"):
        product_of((2, 3, 2, 3), [Outer(left, right, 2)], [Outer(left, right, 2)], "full")


def test_a_bias_shares_the_product_of_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    moving = draw(2, 3, 1, P)
    factors = {"weight": [Outer(moving, draw(3, 1, Q))], "bias": moving.squeeze(2)}
    calls: list[str] = []
    einsum = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda way, *x: calls.append(way) or einsum(way, *x))
    parts = {name: torch.zeros(2, 3, 3, dtype=torch.float64) for name in factors}
    add_products(parts.__getitem__, factors, dict(factors), "each")
    assert sum(way.startswith("oi") for way in calls) == 1
    torch.testing.assert_close(parts["bias"], einsum("oix,ojx->oij", moving.squeeze(2), moving.squeeze(2)))


def test_large_products_of_a_set_with_itself_are_symmetric() -> None:
    x = draw(10, 37, 6)
    found = product_of((10, 37, 10, 37), x, x, "full")
    torch.testing.assert_close(found, torch.einsum("oix,pjx->oipj", x, x))
    rows = found.flatten(0, 1).flatten(1)
    assert len(rows) > 320
    assert torch.equal(rows[:160, 160:], rows[160:, :160].T)


def test_few_places_are_multiplied_and_many_are_added_up_first() -> None:
    def cheaper(places: int, form: str = "full", d: int = 256) -> bool:
        return by_factors([Outer(draw(1, 1, places, d), draw(1, places, d))], (d, d), (64, 64), 10, form)

    assert cheaper(1)
    assert cheaper(4, "trace")
    assert not cheaper(64)
    assert not cheaper(64, "trace")
    table = Outer(torch.zeros(1, 8, dtype=torch.long), draw(1, 1, 8, 64))
    assert by_factors([table], (50_000, 64), (64, 64), 10, "full"), "a table has many rows that no place reads"


def test_sets_that_were_recorded_in_different_ways_are_refused() -> None:
    use = KINDS["a matrix"](1, 2, 1)
    with pytest.raises(ValueError, match="w for one set"):
        product_of((1, 2, 1, 2), [use], rows([use], (P, Q)), "full")
    with pytest.raises(ValueError, match="form"):
        product_of((1,), [use], [use], "all")


@pytest.mark.parametrize("space", [1, 2, 3])
def test_a_convolution_is_a_product_with_patches(space: int) -> None:
    torch.manual_seed(0)
    size, stride, padding, dilation = ([2, 3, 2][:space], [2, 1, 1][:space], [1, 0, 2][:space], [1, 2, 1][:space])
    x, weight = draw(2, 3, *[6, 7, 5][:space]), draw(4, 3, *size)
    convolution = getattr(torch.nn.functional, f"conv{space}d")
    expected = convolution(x, weight, None, stride, padding, dilation).flatten(2).mT
    torch.testing.assert_close(patches(x, size, stride, padding, dilation) @ weight.flatten(1).T, expected)


# How alike kernels are


def test_alignment_of_kernels_is_that_of_features() -> None:
    torch.manual_seed(0)
    x, y = draw(7, 3), draw(7, 4)
    expected = float(kernel_alignment([x], [y]).cka)
    assert centred_alignment(x @ x.T, y @ y.T) == pytest.approx(expected, rel=1e-12)
    assert centred_alignment(x @ x.T, 5 * x @ x.T + 2) == pytest.approx(1.0)
    assert math.isnan(centred_alignment(torch.ones(3, 3), x[:3] @ x[:3].T))


def test_a_kernel_is_aligned_with_the_targets_it_is_made_of() -> None:
    y = torch.tensor([[1.0], [2.0], [-3.0]])
    assert target_alignment(y @ y.T, y) == pytest.approx(1.0)
    assert target_alignment(y @ y.T, y + 7) == pytest.approx(1.0), "the mean is taken off"
    # ⟨1, yyᵀ⟩ = ‖y‖² and ‖1‖ = √3: 1/√3.
    assert target_alignment(torch.eye(3), y) == pytest.approx(3**-0.5)
