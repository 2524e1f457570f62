"""Maps of sequences against their averages written out, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.maths import kernel
from layerwright.maths.activation import activation
from layerwright.maths.attention_kernel import Tokens, attention, flatten, pool, tokens

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_tangents(x: Tensor, by_layer: bool = False) -> Tokens:
    """Tokens after a dense layer, and after a nonlinear one, so that all kernels differ."""
    state: kernel.State = tokens(x, by_layer)
    for step in (kernel.dense(1.5, 0.1), kernel.nonlinear(activation("erf")), kernel.dense(1.2)):
        state = step(state)
    assert isinstance(state, Tokens)
    return state


def own(k: Tokens, i: int) -> Tensor:
    return k.blocks(k.nngp)[i, i]


def test_blocks_are_pairs_of_sequences() -> None:
    k = tokens(X)
    blocks = k.blocks(k.nngp)
    torch.testing.assert_close(blocks[1, 0], X[1] @ X[0].T / 4)
    assert torch.equal(k.rows(blocks), k.nngp)
    torch.testing.assert_close(flatten(k).nngp, X.flatten(1) @ X.flatten(1).T / 12)
    torch.testing.assert_close(pool(k).nngp, X.mean(1) @ X.mean(1).T / 4)


@pytest.mark.parametrize("function", ["softmax", "linear"])
def test_scores_over_d_are_numbers(function: str) -> None:
    k = with_tangents(X)
    found = attention(1.3, 0.2, 0.7, "1/d", function)(k)
    assert isinstance(found, Tokens)
    a, b = (0.7 * own(k, i) for i in (0, 1))
    if function == "softmax":
        a, b = a.softmax(-1), b.softmax(-1)
    mixed, passed = (1.3 * a @ k.blocks(part)[0, 1] @ b.T for part in (k.nngp, k.ntk))
    torch.testing.assert_close(found.blocks(found.nngp)[0, 1], mixed + 0.2)
    torch.testing.assert_close(found.blocks(found.ntk)[0, 1], passed + 2 * mixed + 0.2)


def averaged(k: Tokens, scale: float, function: str, draws: int) -> tuple[Tensor, Tensor]:
    """E A K A′ᵀ and the tangent kernel for sequences 0 and 1: scores from queries and keys, derivatives by autograd."""
    first, second = own(k, 0), own(k, 1)
    cross, tangents = k.blocks(k.nngp)[0, 1], k.blocks(k.ntk)[0, 1]
    joint = torch.cat([torch.cat([first, cross], 1), torch.cat([cross.T, second], 1)])
    root = torch.linalg.cholesky(joint + 1e-12 * torch.eye(6, dtype=joint.dtype))
    z = torch.randn(draws, 6, 6, generator=torch.Generator().manual_seed(1), dtype=joint.dtype)
    scores = scale * root @ z @ root.T

    def weights(g: Tensor) -> Tensor:
        return g.softmax(-1) if function == "softmax" else g

    a, b = weights(scores[:, :3, :3]), weights(scores[:, 3:, 3:])
    slope = torch.func.vmap(torch.func.vmap(torch.func.jacrev(weights)))
    da, db = slope(scores[:, :3, :3]), slope(scores[:, 3:, 3:])  # [draws, a, c, e]
    mixed, passed = (torch.einsum("sac,sbd,cd->ab", a, b, part) / draws for part in (cross, tangents))
    turned, turned_tangents = (
        scale**2 * torch.einsum("sace,sbdf,cd,ef->ab", da, db, cross, part) / draws for part in (cross, tangents)
    )
    return mixed, 2 * mixed + passed + (2 * cross + tangents) * turned + cross * turned_tangents


def test_linear_attention_over_root_d_is_its_average() -> None:
    k = with_tangents(X)
    found = attention(1.0, 0.0, 0.8, "1/sqrt(d)", "linear")(k)
    assert isinstance(found, Tokens)
    for part, expected in zip((found.nngp, found.ntk), averaged(k, 0.8, "linear", 100_000)):
        torch.testing.assert_close(found.blocks(part)[0, 1], expected, rtol=0.05, atol=0.02)


def test_softmax_over_root_d_is_its_average() -> None:
    k = with_tangents(X)
    found = attention(1.0, 0.0, 1.5, "1/sqrt(d)", "softmax", 20_000, torch.Generator().manual_seed(2))(k)
    assert isinstance(found, Tokens)
    for part, expected in zip((found.nngp, found.ntk), averaged(k, 1.5, "softmax", 20_000)):
        torch.testing.assert_close(found.blocks(part)[0, 1], expected, rtol=0.02, atol=0.005)
    torch.testing.assert_close(found.nngp, found.nngp.T)
    assert torch.linalg.eigvalsh(found.nngp).min() > 0


def test_small_scores_weigh_all_tokens_alike() -> None:
    for scaling, draws in (("1/d", None), ("1/sqrt(d)", 10)):
        k = with_tangents(X)
        found = attention(1.0, 0.0, 1e-6, scaling, "softmax", draws, torch.Generator().manual_seed(0))(k)
        assert isinstance(found, Tokens)
        torch.testing.assert_close(pool(found).nngp, pool(k).nngp, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(flatten(found).nngp, pool(k).nngp, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scaling, function", [("1/d", "softmax"), ("1/sqrt(d)", "linear"), ("1/sqrt(d)", "softmax")])
def test_parts_by_layer_add_up(scaling: str, function: str) -> None:
    def map_() -> kernel.Map:
        return attention(1.2, 0.1, 1.0, scaling, function, 50, torch.Generator().manual_seed(0))

    parts, whole = map_()(with_tangents(X, by_layer=True)), map_()(with_tangents(X))
    assert parts.ntk.shape == (3, 6, 6)
    torch.testing.assert_close(parts.ntk.sum(0), whole.ntk)


def test_a_token_is_one_with_another_only_in_an_equal_sequence() -> None:
    x = torch.stack([X[0], X[0], torch.cat([X[0, :2], X[1, :1]])])
    k = tokens(x)
    found = attention()(k)
    assert k.same[0, 6], "a token of a sequence and of one that differs elsewhere"
    assert not found.same[0, 6]
    assert found.same[0, 3]
    assert torch.equal(found.nngp[0, 3], found.q1[0])
    assert abs(found.nngp[0, 6] - found.q1[0]) > 1e-3


def test_softmax_over_root_d_asks_for_draws() -> None:
    with pytest.raises(ValueError, match="no closed form"):
        attention(scaling="1/sqrt(d)")(tokens(X))
