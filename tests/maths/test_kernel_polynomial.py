"""Kernels as polynomials in the correlation, against the maps on all pairs."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import Tensor

from layerwright.maths import kernel_pairs, kernel_polynomial, kernel_tiles
from layerwright.maths.activation import activation
from layerwright.maths.kernel import Kernels, State, add, dense, dropout, inputs, nonlinear, norm
from layerwright.maths.kernel_folded import Folded, folded
from layerwright.maths.kernel_pairs import Fold, Listed, inputs_of
from layerwright.maths.kernel_polynomial import Polynomial
from layerwright.maths.kernel_table import Table
from layerwright.maths.kernel_tiles import Plan, filled, planned

FLOAT64, FLOAT32 = torch.float64, torch.float32
OFF = {FLOAT32: 1e-6, FLOAT64: 1e-12}


def mlp(name: str, depth: int, weight: float = 1.7, bias: float = 0.1) -> Fold:
    maps = [m for _ in range(depth) for m in (dense(weight, bias), nonlinear(activation(name)))]
    return lambda start: reduce(lambda state, layer: layer(state), [*maps, dense()], start)


def through_branches(start: State) -> State:
    state = dense(1.5)(start)
    first = dense(2.0)(nonlinear(activation("relu"))(state))
    second = dense(0.5, 0.2)(nonlinear(activation("gelu"))(norm()(dropout(0.6)(dense(1.1)(state)))))
    return dense()(add(state, first, second, scale=0.7))


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Rows that differ in norm, with twins; polynomials for any number of them, and many small tiles."""
    monkeypatch.setattr(kernel_polynomial, "_PAIRS", 0)
    monkeypatch.setattr(kernel_polynomial, "_ROWS", 4)
    monkeypatch.setattr(kernel_tiles, "_ROWS", 8)
    monkeypatch.setattr(kernel_tiles, "_BYTES", 8 * 20 * 8)
    x = torch.randn(30, 60, generator=torch.Generator().manual_seed(3), dtype=FLOAT64)
    x[20], x[21] = x[3], x[19]
    return x


def close(found: Kernels, expected: Kernels, off: float) -> None:
    for part in ("q1", "q2", "nngp", "ntk"):
        exact = getattr(expected, part)
        torch.testing.assert_close(
            getattr(found, part), exact, rtol=0.0, atol=off * float(exact.abs().max()), check_dtype=False
        )


def by_polynomials(plan: Plan) -> Polynomial:
    assert isinstance(plan, Polynomial)
    return plan


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("name", ["relu", "gelu", "erf", "tanh", "sin", "linear"])
def test_polynomials_are_the_maps_on_all_pairs(name: str, dtype: torch.dtype, points: Tensor) -> None:
    fold = mlp(name, 3, weight=1.1)
    others = torch.randn(15, 60, generator=torch.Generator().manual_seed(4), dtype=FLOAT64)
    others[7] = points[2]
    for second in (None, others, points.clone()):
        given = inputs_of(points, second)
        plan = by_polynomials(planned(fold, given, dtype))
        close(filled(plan, dtype), filled(folded(fold, given, FLOAT64), FLOAT64), OFF[dtype])
        assert "otherwise" not in vars(plan), "no pair went another way"


@pytest.mark.parametrize("by_layer", [False, True])
def test_branches_norms_dropout_and_layers_apart(by_layer: bool, points: Tensor) -> None:
    for second in (None, points[5:20], points.clone()):
        plan = by_polynomials(planned(through_branches, inputs_of(points, second, by_layer), FLOAT64))
        close(filled(plan, FLOAT64), through_branches(inputs(points, second, by_layer)), 1e-12)
        assert plan.layers == (5 if by_layer else 1)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("name", ["equal norms", "homogeneous"])
def test_where_a_table_holds_norms_are_taken_out(name: str, dtype: torch.dtype, points: Tensor) -> None:
    equal = name == "equal norms"
    x = points.sign() if equal else points
    fold = mlp("gelu", 3) if equal else mlp("relu", 3, bias=0.0)
    plan = by_polynomials(planned(fold, inputs_of(x), dtype))
    assert isinstance(plan.table, Table)
    assert plan.terms.powers.shape[2:] == (1, 1)
    close(filled(plan, dtype), fold(inputs(x)), OFF[dtype])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("case", ["gelu", "tanh", "equal norms", "homogeneous"])
def test_few_pairs_with_other_correlations_are_taken_one_by_one(
    case: str, dtype: torch.dtype, points: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    homogeneous = case == "homogeneous"
    fold, kind = mlp("relu" if homogeneous else case if case in ("gelu", "tanh") else "gelu", 3, bias=0.0), Folded
    points[29], points[7] = points[28] + 1e-3 * points[0], 0.1 * points[0] - points[4]
    if case == "equal norms":
        points /= points.norm(dim=1, keepdim=True)
    if homogeneous or case == "equal norms":
        kind = Table
    monkeypatch.setattr(kernel_polynomial, "_SAMPLED", 8)  # every fourth, and so not both of a pair
    asked, known = set(), kind.listed

    def listed(plan: Plan, rows: slice, columns: slice, pairs: Listed) -> Tensor:
        asked.update(zip((pairs.first + rows.start).tolist(), (pairs.second + columns.start).tolist()))
        return known(plan, rows, columns, pairs)

    monkeypatch.setattr(kind, "listed", listed)
    with monkeypatch.context() as alone:
        alone.setattr(kind, "write", None)
        found = filled(by_polynomials(planned(fold, inputs_of(points), dtype)), dtype)
    assert {(28, 29), (4, 7)} <= asked
    assert len(asked) < 30
    close(found, filled(folded(fold, inputs_of(points), FLOAT64), FLOAT64), OFF[dtype])
    assert torch.equal(found.ntk, found.ntk.T)


def test_tiles_with_many_other_correlations_go_another_way(points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, taken = mlp("gelu", 3), []
    points[29] = points[28] + 1e-3 * points[0]
    monkeypatch.setattr(kernel_polynomial, "_SAMPLED", 15)  # every other, and so not both
    monkeypatch.setattr(kernel_pairs, "_MOST_LISTED", 0.0)
    known = Folded.write
    monkeypatch.setattr(Folded, "write", lambda self, rows, *rest: taken.append(rows) or known(self, rows, *rest))
    found = filled(by_polynomials(planned(fold, inputs_of(points), FLOAT64)), FLOAT64)
    assert taken == [slice(16, 30)]
    close(found, fold(inputs(points)), 1e-12)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_equal_inputs_are_exact_and_the_matrix_is_symmetric(dtype: torch.dtype, points: Tensor) -> None:
    fold = mlp("gelu", 2)
    found = filled(by_polynomials(planned(fold, inputs_of(points), dtype)), dtype)
    exact = fold(inputs(points))
    assert torch.equal(found.nngp.diagonal(), found.q1)
    assert found.nngp[3, 20] == found.q1[3]
    for part in (found.nngp, found.ntk):
        assert torch.equal(part, part.T)
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.ntk.diagonal(), exact.ntk.diagonal(), rtol=rtol, atol=0.0, check_dtype=False)


def test_intervals_leave_equal_inputs_out(points: Tensor) -> None:
    x, fold = points.abs(), mlp("erf", 2)
    plan = by_polynomials(planned(fold, inputs_of(x), FLOAT64))
    assert plan.terms.interval[0] > 0.2
    close(filled(plan, FLOAT64), fold(inputs(x)), 1e-12)


@pytest.mark.parametrize("case", ["zero", "one input", "wide", "small for float32", "few"])
def test_where_polynomials_do_not_hold_there_are_none(
    case: str, points: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dtype = points, FLOAT64
    if case == "zero":
        x[4] = 0.0
    elif case == "one input":
        x = x[:1]
    elif case == "wide":
        x[4] *= 1e3
    elif case == "small for float32":
        x, dtype = x * 1e-12, FLOAT32
    else:
        monkeypatch.setattr(kernel_polynomial, "_PAIRS", 901)
    fold = mlp("gelu", 2)
    plan = planned(fold, inputs_of(x), dtype)
    assert not isinstance(plan, Polynomial)
    close(filled(plan, dtype), fold(inputs(x)), OFF[dtype])


def test_what_float32_does_not_carry_is_left_to_float64(points: Tensor) -> None:
    # At a large weight variance erf is chaotic: roundings grow from layer to layer.
    fold = mlp("erf", 12, weight=40.0, bias=0.0)
    exact = filled(folded(fold, inputs_of(points), FLOAT64), FLOAT64)
    close(filled(planned(fold, inputs_of(points), FLOAT32), FLOAT32), exact, 1e-5)


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_depth_costs_nothing_from_the_second_call_on(bias: float, points: Tensor) -> None:
    calls, deep = [], mlp("relu", 100, weight=2.0, bias=bias)

    def fold(start: State) -> State:
        calls.append(start.nngp.shape)
        return deep(start)

    first = filled(by_polynomials(planned(fold, inputs_of(points), FLOAT32)), FLOAT32)
    once = len(calls)
    second = filled(by_polynomials(planned(fold, inputs_of(points), FLOAT32)), FLOAT32)
    assert len(calls) == once > 0
    assert torch.equal(first.ntk, second.ntk)
    close(first, filled(folded(deep, inputs_of(points), FLOAT64), FLOAT64), 2e-6)


def test_kernels_that_overflow_are_refused(points: Tensor) -> None:
    plan = by_polynomials(planned(dense(1e27, 1.0), inputs_of(points * 1e6), FLOAT32))
    with pytest.raises(ValueError, match="overflow"):
        filled(plan, FLOAT32)
