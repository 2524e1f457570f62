"""Kernels of towers that read sequences against finite networks of the same words, within three standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from layerwright.core.errors import UserError
from layerwright.theories import sequence_towers
from layerwright.theories.towers import Act, Attention, Conv, Dense, Dropout, Flatten, Norm, Pool, Residual, Word, tower

X = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROOT = "1/sqrt(d)"
TOWERS: dict[str, list[Word]] = {
    "softmax over d": [
        Dense(2.0), Residual([Norm(0.1), Attention(1.5, 0.1, 1.5)], 0.8), Residual([Act("relu"), Dense(2.0)], 0.5),
        Attention(), Flatten(), Dense(1.0, 0.1),
    ],
    "linear over d": [Attention(1.5, 0.1, 0.7, "1/d", "linear"), Act("erf"), Pool(), Dense()],
    "linear over √d": [Dense(1.2, 0.1), Attention(1.3, 0.2, 0.8, ROOT, "linear"), Pool(), Dense()],
    "softmax over √d": [Dense(1.2, 0.1), Attention(1.3, 0.2, 1.5, ROOT), Flatten(), Dense()],
}  # fmt: skip


def tangent(net: nn.Module, x: Tensor) -> Tensor:
    values = {name: p.detach() for name, p in net.named_parameters()}

    def output(p: dict[str, Tensor], sequence: Tensor) -> Tensor:
        return functional_call(net, p, (sequence[None],)).squeeze()

    found = vmap(grad(output), (None, 0))(values, x)
    layers: dict[str, Tensor] = {}
    for name, g in found.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, torch.zeros(())) + g.flatten(1) @ g.flatten(1).T
    return torch.stack(list(layers.values()))


@pytest.mark.parametrize("name", TOWERS)
def test_finite_networks_agree_within_three_standard_errors(name: str) -> None:
    made, width = tower(TOWERS[name]), 64
    covariances, tangents = [], []
    for seed in range(40):
        f = made.network(X.shape[1:], width, outputs=width, seed=seed).double()(X).detach()
        covariances.append(f @ f.T / width)
        tangents.append(tangent(made.network(X.shape[1:], width, seed=seed).double(), X))
    parts = torch.stack(tangents)
    if name == "softmax over √d":
        drawn = made.drawn(X, draws=3200)
        known, errors = drawn.kernels, (drawn.nngp_error, drawn.ntk_error)
    else:
        known, errors = made.kernel(X), (torch.zeros(2, 2), torch.zeros(2, 2))
    for seen, expected, unsure in (
        (torch.stack(covariances), known.nngp, errors[0]), (parts.sum(1), known.ntk, errors[1])
    ):  # fmt: skip
        error = (seen.var(0) / len(seen) + unsure.square()).sqrt()
        assert ((seen.mean(0) - expected).abs() <= 3 * error + 1e-12).all()
        assert error.max() < 0.12 * expected.abs().max(), "an error small enough to see anything"


def test_what_moves_the_scores_is_in_the_tangent_kernel() -> None:
    made = tower([Attention(1.0, 0.0, 1.5, ROOT), Flatten(), Dense()])
    found = torch.stack([tangent(made.network((3, 5), 48, seed=s).double(), X)[0] for s in range(30)])
    drawn = made.drawn(X, draws=3200)
    parts = (
        drawn.kernels.ntk - drawn.kernels.nngp
    )  # of the attention alone: values and outputs give twice the covariance
    error = (found.var(0) / 30 + drawn.ntk_error.square()).sqrt()
    assert ((found.mean(0) - parts).abs() <= 3 * error).all()
    assert ((parts - 2 * drawn.kernels.nngp).diagonal() > 6 * error.diagonal()).all(), "more than values and outputs"


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "softmax over √d"])
def test_the_split_adds_up_and_second_sequences_are_a_block_of_all(name: str) -> None:
    made = tower(TOWERS[name])
    whole, block = made.kernel(X), made.kernel(X[:1], X)
    torch.testing.assert_close(made.split(X).sum(0), whole.ntk)
    torch.testing.assert_close(block.ntk, whole.ntk[:1])
    torch.testing.assert_close(block.nngp, whole.nngp[:1])
    assert block.q1.shape == (1,)
    torch.testing.assert_close(block.q2, whole.q1)


def test_pooling_forgets_the_order_of_tokens_and_flattening_does_not() -> None:
    turned = X[:, [2, 0, 1]]
    for readout, same in ((Pool(), True), (Flatten(), False)):
        made = tower([Attention(), Act("relu"), readout, Dense()])
        assert torch.allclose(made.kernel(X, turned).ntk, made.kernel(X).ntk) == same


def test_equal_sequences_have_equal_kernels() -> None:
    made = tower([Dense(2.0), Dropout(0.9), Attention(score_scale=3.0), Act("relu"), Pool(), Dense()])
    without = tower([Dense(2.0), Attention(score_scale=3.0), Act("relu"), Pool(), Dense()])
    twice = torch.cat([X, X[:1]])
    k = without.kernel(twice)
    assert torch.equal(k.nngp[0, 2], k.q1[0])
    torch.testing.assert_close(k.ntk[0, 2], k.ntk[0, 0])
    assert made.kernel(twice).nngp[0, 2] < made.kernel(twice).nngp[0, 0], "that lost other units"


def test_draws_are_of_their_seed_and_their_error_falls_with_their_number() -> None:
    made = tower(TOWERS["softmax over √d"])
    few, again, other, many = (made.drawn(X, draws=n, seed=s) for n, s in ((320, 1), (320, 1), (320, 2), (5120, 3)))
    assert torch.equal(few.kernels.ntk, again.kernels.ntk)
    assert not torch.equal(few.kernels.ntk, other.kernels.ntk)
    assert (few.ntk_error / many.ntk_error).mean() > 2
    apart = (few.kernels.ntk - many.kernels.ntk).abs()
    assert (apart < 4 * (few.ntk_error.square() + many.ntk_error.square()).sqrt()).all()


@pytest.mark.parametrize(
    "words, message",
    [
        (lambda: [Attention(), Act("relu"), Dense()], "without a readout"),
        (lambda: [Conv(3), Attention(), Pool(), Dense()], "images or sequences"),
        (lambda: [Attention(), Pool(), Attention(), Dense()], "got Attention after"),
        (lambda: [Attention(), Residual([Act("relu")]), Pool(), Dense()], "does not end with Dense or Attention"),
        (lambda: [Residual([Attention()]), Pool(), Dense()], "Residual on the inputs"),
        (lambda: [Attention(0.0)], "weight_variance=0.0"), (lambda: [Attention(score_scale=0.0)], "score_scale=0.0"),
        (lambda: [Attention(scaling="1/n")], "scaling='1/n'"),
        (lambda: [Attention(function="relu")], "function='relu'"),
    ],
)  # fmt: skip
def test_words_that_make_no_tower(words: Callable[[], list[Word]], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tower(words())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "x, x2, message",
    [
        (X[0], None, "expected sequences"), (X, X[:, :2], "as many tokens"), (X, X[..., :2], "as many numbers"),
        (X * math.nan, None, "NaN or infinite"), (X.to(torch.complex64), None, "complex"), ([["a"]], None, "no array"),
    ],
)  # fmt: skip
def test_sequences_without_kernels(x: Tensor, x2: Tensor | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tower([Attention(), Pool(), Dense()]).kernel(x, x2)
    assert "\n" not in str(raised.value)


def test_what_has_no_closed_form_is_drawn_and_nothing_else() -> None:
    with pytest.raises(UserError, match=r"expected tower\.drawn"):
        tower(TOWERS["softmax over √d"]).kernel(X)
    for made in (tower(TOWERS["softmax over d"]), tower([Dense()])):
        with pytest.raises(UserError, match="none are drawn"):
            made.drawn(X)
    with pytest.raises(UserError, match="positions of images"):
        tower([Attention(), Pool(), Dense()]).sampled(X)
    with pytest.raises(UserError, match="draws=3"):
        tower(TOWERS["softmax over √d"]).drawn(X, draws=3)


def test_more_tokens_than_memory_are_refused_before_they_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_towers, "available_memory", lambda: 2**20)
    with pytest.raises(UserError, match="fewer sequences at a time"):
        tower([Attention(), Pool(), Dense()]).kernel(torch.ones(100, 10, 2))


def test_a_network_of_sequences_is_told_their_size() -> None:
    with pytest.raises(UserError, match="tokens and their numbers"):
        tower([Attention(), Pool(), Dense()]).network(5, 8)
    net = tower([Attention(1.0, 0.5), Norm(), Flatten(), Dense()]).network((3, 5), 8, outputs=2)
    assert net(X.float()).shape == (2, 2)
