"""Maps of kernels, against hand values, a recursion written out, and what any kernel has to be."""

from __future__ import annotations

import math
from functools import partial, reduce

import numpy as np
import pytest
import torch
from torch import Tensor

from layerwright.maths.activation import activation
from layerwright.maths.kernel import Map, State, add, dense, dropout, inputs, kinds, nonlinear, norm

float64 = partial(torch.tensor, dtype=torch.float64)


def fold(x: Tensor, *maps: Map, x2: Tensor | None = None) -> State:
    return reduce(lambda state, layer: layer(state), maps, inputs(x, x2))


def mlp(name: str, depth: int, bias: float = 0.1) -> list[Map]:
    return [*(m for _ in range(depth) for m in (dense(1.7, bias), nonlinear(activation(name)))), dense()]


@pytest.fixture(scope="module")
def points() -> Tensor:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_two_inputs_and_one_relu_layer_by_hand() -> None:
    k = fold(float64([[1, 0], [0.5, math.sqrt(0.75)]]), dense(2.0), nonlinear(activation("relu")), dense())
    # θ = π/3 and |x| = 1: K₁ = cos θ · 2/2; the arc-cosine kernels of degree 1 and 0.
    dual, slope = (math.sin(math.pi / 3) + math.pi / 3) / (2 * math.pi), (math.pi * 2 / 3) / (2 * math.pi)
    torch.testing.assert_close(k.nngp, float64([[0.5, dual], [dual, 0.5]]), rtol=1e-15, atol=0)
    off = dual + 0.5 * slope
    torch.testing.assert_close(k.ntk, float64([[1.0, off], [off, 1.0]]), rtol=1e-15, atol=0)


def naive(x: list[float], y: list[float], depth: int, weight: float, bias: float) -> tuple[float, float]:
    """The recursion for relu as it stands in textbooks, for one pair."""
    q, p, c, t = (sum(a * b for a, b in zip(*pair)) / len(x) for pair in ((x, x), (y, y), (x, y), (x, [0.0] * len(x))))
    for layer in range(depth + 1):
        if layer:
            theta = math.acos(max(-1.0, min(1.0, c / math.sqrt(q * p))))
            c = math.sqrt(q * p) / (2 * math.pi) * (math.sin(theta) + (math.pi - theta) * math.cos(theta))
            t *= (math.pi - theta) / (2 * math.pi)
            q, p = q / 2, p / 2
        q, p, c = weight * q + bias, weight * p + bias, weight * c + bias
        t = c + weight * t
    return c, t


def test_the_recursion_written_out_pair_by_pair(points: Tensor) -> None:
    x, y = points[:5], points[5:]
    layer, relu = dense(1.7, 0.1), nonlinear(activation("relu"))
    k = fold(x, layer, relu, layer, relu, layer, relu, layer, x2=y)
    expected = float64([[naive(a, b, 3, 1.7, 0.1) for b in y.tolist()] for a in x.tolist()])
    torch.testing.assert_close(torch.stack([k.nngp, k.ntk], -1), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "erf", "silu"])
def test_the_diagonal_is_exact(name: str, points: Tensor) -> None:
    twice = torch.cat([points, points[:3]])
    phi = activation(name)
    k = fold(twice, *mlp(name, 3))
    q, t = twice.square().mean(1), torch.zeros(15, dtype=torch.float64)
    for layer in range(4):
        q, t = (phi.diagonal(q), t * phi.diagonal_derivative(q)) if layer else (q, t)
        weight, bias = (1.7, 0.1) if layer < 3 else (1.0, 0.0)
        q, t = weight * q + bias, weight * t + weight * q + bias
    for found, exact in ((k.nngp, q), (k.ntk, t)):
        torch.testing.assert_close(found.diagonal(), exact, rtol=1e-14, atol=0)
        torch.testing.assert_close(found[:3, 12:].diagonal(), exact[:3], rtol=1e-14, atol=0)
    assert torch.equal(k.nngp.diagonal(), k.q1)
    assert torch.equal(k.nngp[:3, 12:].diagonal(), k.q1[:3])


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_kernels_are_symmetric_positive_and_blind_to_rotations(name: str, points: Tensor) -> None:
    k = fold(points, *mlp(name, 2), norm(0.1), dense())
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    turned, permuted = (
        fold(points @ turn, *mlp(name, 2), norm(0.1), dense()),
        fold(points[order], *mlp(name, 2), norm(0.1), dense()),
    )
    for part in ("nngp", "ntk"):
        kernel = getattr(k, part)
        torch.testing.assert_close(kernel, kernel.T, rtol=1e-13, atol=1e-13)
        assert torch.linalg.eigvalsh(kernel).min() > -1e-13 * kernel.diagonal().max()
        torch.testing.assert_close(getattr(turned, part), kernel, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(getattr(permuted, part), kernel[order][:, order], rtol=1e-12, atol=1e-13)


def test_second_inputs_are_a_block_of_all(points: Tensor) -> None:
    whole, block = fold(points, *mlp("erf", 2)), fold(points[:4], *mlp("erf", 2), x2=points[2:])
    torch.testing.assert_close(block.nngp, whole.nngp[:4, 2:], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(block.ntk, whole.ntk[:4, 2:], rtol=1e-12, atol=1e-14)
    assert torch.equal(block.nngp[2:4].diagonal(), block.q1[2:])


def test_parts_by_layer_add_up_through_branches(points: Tensor) -> None:
    def through(state: State) -> State:
        state = dense(1.5)(state)
        first = dense(2.0)(nonlinear(activation("relu"))(state))
        second = dense(0.5, 0.2)(nonlinear(activation("gelu"))(norm()(state)))
        return dense()(add(state, first, second, scale=0.7))

    whole, parts = through(inputs(points)), through(inputs(points, by_layer=True))
    assert parts.ntk.shape == (4, 12, 12)
    torch.testing.assert_close(parts.ntk.sum(0), whole.ntk)
    torch.testing.assert_close(parts.nngp, whole.nngp)
    torch.testing.assert_close(parts.ntk[-1], whole.nngp)


def test_dropout_touches_an_input_beside_itself_only(points: Tensor) -> None:
    twice = torch.cat([points[:3], points[:1]])
    k, dropped = fold(twice, dense()), fold(twice, dense(), dropout(0.5))
    for part in ("nngp", "ntk"):
        expected = getattr(k, part) * (1 + torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(getattr(dropped, part), expected)
    assert not fold(twice, dropout(0.5), x2=points).same.any()
    beside = add(inputs(twice), dense()(dropout(0.5)(inputs(twice))))
    assert beside.nngp[0, 3] < beside.q1[0], "equal inputs that lost other units"


def test_types_are_kept_and_whole_numbers_are_read(points: Tensor) -> None:
    single = fold(points.float(), *mlp("relu", 3))
    assert single.ntk.dtype == torch.float32
    torch.testing.assert_close(single.ntk.double(), fold(points, *mlp("relu", 3)).ntk, rtol=1e-5, atol=1e-6)
    whole = torch.tensor([[1, 2], [3, -4]])
    torch.testing.assert_close(fold(whole, *mlp("relu", 1)).ntk, fold(whole.double(), *mlp("relu", 1)).ntk)


def test_a_zero_vector_has_a_kernel_of_its_biases() -> None:
    x = float64([[0.0, 0.0], [1.0, 1.0]])
    assert not fold(x, *mlp("relu", 2, bias=0.0)).ntk[0].any()
    assert fold(x, *mlp("relu", 2)).ntk[0, 0] > 0


@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_are_of_one_kind_where_all_their_numbers_are(dtype: torch.dtype, width: int) -> None:
    g = torch.Generator().manual_seed(1)
    many, few = (torch.randint(-n, n, (30, width), generator=g).to(dtype) for n in (1000, 2))
    few[3], few[4] = 0.0, -0.0
    for rows in (many, few):
        (kind, _), (first, second) = kinds(rows, rows), kinds(rows, rows[::2])
        equal = (rows[:, None] == rows).all(-1)
        assert torch.equal(kind[:, None] == kind, equal)
        assert torch.equal(first[:, None] == second, equal[:, ::2])


@pytest.mark.parametrize(
    "x, x2, words",
    [
        (torch.ones(3), None, "expected rows"), (torch.ones(2, 3), torch.ones(2, 4), "the same columns"),
        (torch.ones(0, 3), None, "expected rows"), (torch.ones(2, 0), None, "the same columns"),
        (torch.full((2, 2), math.nan), None, "NaN or infinite"), (torch.ones(2, 2), torch.full((1, 2), np.inf), "NaN"),
        (torch.ones(2, 2, dtype=torch.complex64), None, "complex"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_used(x: Tensor, x2: Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inputs(x, x2)


def test_a_jump_has_no_tangent_kernel() -> None:
    with pytest.raises(ValueError, match="no tangent kernel"):
        fold(torch.eye(2), dense(), nonlinear(activation("step")))
