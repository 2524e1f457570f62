"""Kernels tile by tile, against the same maps on all pairs at once."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import Tensor

from layerwright.maths import kernel_folded, kernel_pairs, kernel_tiles
from layerwright.maths.activation import NAMES, activation
from layerwright.maths.kernel import Kernels, State, add, dense, dropout, inputs, nonlinear, norm
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Listed, inputs_of
from layerwright.maths.kernel_table import Table
from layerwright.maths.kernel_tiles import filled, planned, tiles

FLOAT64, FLOAT32 = torch.float64, torch.float32


def mlp(name: str, depth: int, weight: float = 1.7, bias: float = 0.1) -> Fold:
    maps = [m for _ in range(depth) for m in (dense(weight, bias), nonlinear(activation(name)))]
    return lambda start: reduce(lambda state, layer: layer(state), [*maps, dense()], start)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Rows that differ in norm, with twins and a zero vector; tiles so small that there are many."""
    monkeypatch.setattr(kernel_tiles, "_ROWS", 8)
    monkeypatch.setattr(kernel_tiles, "_BYTES", 8 * 12 * 8)
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(3), dtype=FLOAT64)
    x[20], x[21], x[25] = x[3], x[19], 0.0
    return x


def same(found: Kernels, expected: Kernels, rtol: float, parts: tuple[str, ...] = ("q1", "q2", "nngp", "ntk")) -> None:
    for part in parts:
        exact = getattr(expected, part)
        atol = rtol * float(exact.abs().max())
        torch.testing.assert_close(getattr(found, part), exact, rtol=rtol, atol=atol, check_dtype=False)


def through_branches(start: State) -> State:
    state = dense(1.5)(start)
    first = dense(2.0)(nonlinear(activation("relu"))(state))
    second = dense(0.5, 0.2)(nonlinear(activation("gelu"))(norm()(dropout(0.6)(dense(1.1)(state)))))
    return dense()(add(state, first, second, scale=0.7))


@pytest.mark.parametrize("name", ["relu", "leaky_relu:0.2", "gelu", "erf", "sin", "squared_relu", "rbf:0.5", "linear"])
def test_tiles_are_the_maps_on_all_pairs(name: str, points: Tensor) -> None:
    fold = mlp(name, 2, weight=0.6)
    for second in (None, points[5:20], points.clone()):
        found = filled(folded(fold, inputs_of(points, second), FLOAT64), FLOAT64)
        same(found, fold(inputs(points, second)), 1e-12)


@pytest.mark.parametrize("by_layer", [False, True])
def test_branches_norms_dropout_and_layers_apart(by_layer: bool, points: Tensor) -> None:
    for second in (None, points[5:20], points.clone()):
        plan = folded(through_branches, inputs_of(points, second, by_layer), FLOAT64)
        same(filled(plan, FLOAT64), through_branches(inputs(points, second, by_layer)), 1e-12)
    assert plan.layers == (5 if by_layer else 1)


def test_series_go_as_far_as_their_correlations_ask(points: Tensor) -> None:
    fold, apart = mlp("tanh", 2), points[:19]
    found = filled(folded(fold, inputs_of(apart), FLOAT64), FLOAT64)
    same(found, fold(inputs(apart)), 1e-6)  # the maps end a series at 1e-6
    phi = activation("tanh")
    one = dense(1.7, 0.1)(inputs(apart))
    terms = [phi.coefficients(q, 256) for q in (one.q1, one.q2)]
    rho = (one.nngp / (one.q1[:, None] * one.q2).sqrt()).fill_diagonal_(1.0)
    exact = torch.einsum("in,jn,ijn->ij", *terms, rho.unsqueeze(-1) ** torch.arange(256))
    exact.diagonal().copy_(phi.diagonal(one.q1))
    first = filled(folded(lambda k: nonlinear(phi)(dense(1.7, 0.1)(k)), inputs_of(apart), FLOAT64), FLOAT64)
    torch.testing.assert_close(first.nngp, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_float32_is_float64_to_five_digits_and_symmetric(name: str, points: Tensor) -> None:
    fold = mlp(name, 3)
    points[7] = points[6] * (1 + 1e-6)
    whole = filled(folded(fold, inputs_of(points), FLOAT64), FLOAT64)
    half = filled(folded(fold, inputs_of(points), FLOAT32), FLOAT32)
    assert half.ntk.dtype == FLOAT32
    same(half, whole, 1e-5)
    for k in (whole, half):
        assert torch.equal(k.ntk, k.ntk.T)
        assert torch.equal(k.nngp.diagonal(), k.q1)
        assert k.nngp[3, 20] == k.q1[3]


def test_correlations_that_float32_does_not_carry_are_folded_in_float64(points: Tensor) -> None:
    # At a large weight variance erf is chaotic: roundings grow from layer to layer.
    fold, few = mlp("erf", 12, weight=40.0, bias=0.0), points[:16]
    few[9] = few[8] + 1e-5
    whole = filled(folded(fold, inputs_of(few), FLOAT64), FLOAT64)
    same(filled(folded(fold, inputs_of(few), FLOAT32), FLOAT32), whole, 1e-5)
    plan = folded(fold, inputs_of(few), FLOAT32)
    vars(plan)["rough"] = (-1.0, 1.0)
    rough = filled(plan, FLOAT32)
    assert ((rough.ntk - whole.ntk).abs().max() / whole.ntk.abs().max()) > 1e-5, "float32 alone is not enough"


@pytest.mark.parametrize("name", ["erf", "tanh"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_few_pairs_that_float32_does_not_carry_are_listed(
    name: str, by_layer: bool, points: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold, asked = mlp(name, 6, weight=4.0), set()
    points[9] = points[8] + 1e-5
    known = Folded.listed

    def listed(plan: Folded, rows: slice, columns: slice, pairs: Listed) -> Tensor:
        asked.update(zip((pairs.first + rows.start).tolist(), (pairs.second + columns.start).tolist()))
        return known(plan, rows, columns, pairs)

    monkeypatch.setattr(Folded, "listed", listed)
    given = inputs_of(points, None, by_layer)
    found = filled(folded(fold, given, FLOAT32), FLOAT32)
    assert asked == {(8, 9), (9, 8)}
    same(found, filled(folded(fold, given, FLOAT64), FLOAT64), 1e-5)
    monkeypatch.setattr(kernel_pairs, "_MOST_LISTED", 0.0)
    asked.clear()
    in_float64 = filled(folded(fold, given, FLOAT32), FLOAT32)
    assert not asked
    assert found.ntk[..., 8, 9].equal(in_float64.ntk[..., 8, 9])


def test_float32_is_taken_where_it_is_enough(points: Tensor) -> None:
    shallow, chaotic = (
        folded(mlp("erf", n, w, 0.0), inputs_of(points), FLOAT32).rough for n, w in ((2, 2.0), (12, 40.0))
    )
    assert shallow[0] < -0.9
    assert shallow[1] > 0.9
    assert chaotic[1] < shallow[1]
    assert folded(mlp("erf", 2), inputs_of(points), FLOAT64).rough == (1.0, -1.0)


def test_what_an_activation_knows_of_an_input_is_found_once(points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    known = kernel_pairs.side
    monkeypatch.setattr(kernel_folded, "side", lambda phi, q: asked.append(len(q)) or known(phi, q))
    plan = folded(mlp("tanh", 2), inputs_of(points, points[:9]), FLOAT64)
    filled(plan, FLOAT64)
    assert asked == [30, 30, 9, 9], "each layer, for first and second inputs"


@pytest.mark.parametrize("n, m", [(30, None), (30, 17), (8, None), (1, None), (1, 40)])
def test_tiles_tell_every_pair(n: int, m: int | None, points: Tensor) -> None:
    x = torch.arange(float(n))[:, None]
    plan = folded(dense(), inputs_of(x, None if m is None else torch.arange(float(m))[:, None] + 0.5), FLOAT32)
    seen = torch.zeros(n, m or n)
    for rows, columns in tiles(plan, slice(n), slice(m or n)):
        seen[rows, columns] = 1
        if m is None:
            seen[columns, rows] = 1
    assert seen.all()


def test_threads_are_as_they_were_and_change_nothing(points: Tensor) -> None:
    before, found = torch.get_num_threads(), []
    plan = folded(mlp("relu", 3), inputs_of(points), FLOAT64)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(filled(plan, FLOAT64))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].ntk, found[1].ntk)


def test_kernels_that_overflow_are_refused(points: Tensor) -> None:
    plan = folded(dense(1e200), inputs_of(points * 1e60), FLOAT64)
    with pytest.raises(ValueError, match="overflow"):
        filled(plan, FLOAT32)
    with pytest.raises(ValueError, match="not finite"):
        folded(mlp("relu", 1), inputs_of(points * 1e200), FLOAT64)


@pytest.mark.parametrize("given", [[[1, 2], [3, -4]], [[0, 0], [0, 0]], [[5, 5]]])
def test_whole_numbers_zeros_and_one_input(given: list[list[int]]) -> None:
    x, fold = torch.tensor(given), mlp("relu", 2)
    same(filled(folded(fold, inputs_of(x), FLOAT64), FLOAT64), fold(inputs(x)), 1e-13)


def closed_forms() -> list[str]:
    names = [f"{name}:3" if name in ("rectified", "monomial", "hermite", "optimal") else name for name in NAMES]
    return [name for name in names if (phi := activation(name)).closed and phi.derivative]


@pytest.mark.parametrize("name", closed_forms())
def test_both_averages_at_once_are_the_two_by_themselves(name: str) -> None:
    phi = activation(name)
    g = torch.Generator().manual_seed(0)
    q1, q2 = (3 * torch.rand(shape, generator=g, dtype=FLOAT64) for shape in ((7, 1), (1, 9)))
    c = (2 * torch.rand(7, 9, generator=g, dtype=FLOAT64) - 1) * (q1 * q2).sqrt()
    assert phi.closed is not None
    for found, exact in zip(phi.closed.both(q1, c, q2), (phi.dual(q1, c, q2), phi.dual_derivative(q1, c, q2))):
        torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-14)
    for found, exact in zip(phi.closed.both(q1, q1, q1), (phi.diagonal(q1), phi.diagonal_derivative(q1))):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("name", ["relu", "leaky_relu:0.2"])
def test_without_biases_a_zero_vector_has_a_kernel_of_exactly_zero(
    name: str, dtype: torch.dtype, points: Tensor
) -> None:
    fold, given = mlp(name, 3, bias=0.0), inputs_of(points)
    for plan in (folded(fold, given, dtype), planned(fold, given, dtype)):
        found = filled(plan, dtype)
        assert found.nngp[25].count_nonzero() == found.ntk[:, 25].count_nonzero() == 0
    assert isinstance(plan, Table)
