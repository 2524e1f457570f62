"""Kernels of towers that read images against finite networks of the same words, within three standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from layerwright.core.errors import UserError
from layerwright.theories import image_towers
from layerwright.theories.towers import Act, Conv, Dense, Dropout, Flatten, Norm, Pool, Residual, Word, tower

X = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOWERS: dict[str, list[Word]] = {
    "pooled": [Conv(3, 2.0), Act("relu"), Conv(3, 2.0, 0.1), Act("relu"), Pool(), Dense()],
    "flattened": [Conv(3, 2.0, 0.1), Act("gelu"), Conv(2, 2.0), Act("gelu"), Flatten(), Dense(1.5, 0.2)],
    "valid": [Conv(3, 2.0, 0.1, "valid"), Act("erf"), Conv(2, 2.0, 0.0, "valid"), Act("erf"), Pool(), Dense()],
    "circular, and dense layers after": [
        Conv(3, 2.0, 0.1, "circular"), Act("tanh"), Conv(2, 2.0, 0.0, "circular"), Pool(), Act("relu"), Dropout(0.8),
        Dense(2.0), Act("relu"), Dense(),
    ],
    "residual": [
        Conv(3, 1.5), Residual([Norm(0.1), Act("relu"), Conv(3, 2.0)], 0.7), Residual([Act("relu"), Conv(1, 2.0)], 0.7),
        Norm(0.1), Act("relu"), Flatten(), Norm(), Dense(2.0), Act("relu"), Dense(),
    ],
    "no convolution": [Pool(), Dense(2.0), Act("relu"), Dense()],
}  # fmt: skip


def tangent(net: nn.Module, x: Tensor) -> Tensor:
    """The empirical tangent kernel of the one output, by layer."""
    values = {name: p.detach() for name, p in net.named_parameters()}

    def output(p: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(net, p, (image[None],)).squeeze()

    layers: dict[str, Tensor] = {}
    for name, g in vmap(grad(output), (None, 0), randomness="different")(values, x).items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, torch.zeros(())) + g.flatten(1) @ g.flatten(1).T
    return torch.stack(list(layers.values()))


@pytest.mark.parametrize("name", TOWERS)
def test_finite_networks_agree_within_three_standard_errors(name: str) -> None:
    made, width = tower(TOWERS[name]), 64
    torch.manual_seed(0)  # of dropout's masks
    covariances, tangents = [], []
    for seed in range(50):
        f = made.network(X.shape[1:], width, outputs=width, seed=seed).double()(X).detach()
        covariances.append(f @ f.T / width)
        tangents.append(tangent(made.network(X.shape[1:], width, seed=seed).double(), X))
    split, whole, parts = made.split(X), made.kernel(X), torch.stack(tangents)
    for seen, expected in ((torch.stack(covariances), whole.nngp), (parts, split), (parts.sum(1), whole.ntk)):
        error = seen.std(0) / math.sqrt(len(seen))
        assert ((seen.mean(0) - expected).abs() <= 3 * error + 1e-12).all()
        assert error.max() < 0.12 * expected.abs().max(), "an error small enough to see anything"


@pytest.mark.parametrize("name", TOWERS)
def test_the_split_adds_up_and_second_images_are_a_block_of_all(name: str) -> None:
    made = tower(TOWERS[name])
    whole, block = made.kernel(X), made.kernel(X[:2], X[1:])
    torch.testing.assert_close(made.split(X[:2], X[1:]).sum(0), block.ntk)
    if not any(isinstance(word, Dropout) for word in TOWERS[name]):  # which tells an image from its twin
        torch.testing.assert_close(block.nngp, whole.nngp[:2, 1:])
        torch.testing.assert_close(block.ntk, whole.ntk[:2, 1:])
    torch.testing.assert_close(block.q1, whole.q1[:2])
    torch.testing.assert_close(block.q2, whole.q2[1:])


def test_a_flattened_tower_of_one_pixel_filters_is_a_mean_over_dense_ones() -> None:
    images = tower([Conv(1, 2.0, 0.1), Act("relu"), Flatten(), Dense()]).kernel(X)
    pixels = [tower([Dense(2.0, 0.1), Act("relu"), Dense()]).kernel(X[:, :, i, j]) for i in range(5) for j in range(4)]
    torch.testing.assert_close(images.ntk, torch.stack([k.ntk for k in pixels]).mean(0))


def test_flattening_at_once_is_a_tower_of_rows() -> None:
    words: list[Word] = [Dense(2.0), Act("relu"), Dense()]
    torch.testing.assert_close(tower([Flatten(), *words]).kernel(X).ntk, tower(words).kernel(X.flatten(1)).ntk)
    one, other = (t.network(s, 8, seed=1) for t, s in ((tower([Flatten(), *words]), X.shape[1:]), (tower(words), 40)))
    torch.testing.assert_close(one(X.float()), other(X.float().flatten(1)))


def test_pooling_forgets_where_an_image_begins() -> None:
    made = tower([*TOWERS["circular, and dense layers after"][:3], Pool(), Dense()])
    moved = X.roll((2, 1), (2, 3))
    torch.testing.assert_close(made.kernel(X, moved).ntk, made.kernel(X).ntk)


def test_images_shrink_as_their_filters_say() -> None:
    words: list[Word] = [Conv(3, padding="valid"), Act("relu"), Conv(2, padding="valid"), Flatten(), Dense()]
    net = tower(words).network((2, 5, 4), width=6, outputs=3)
    assert net[-1].weight.shape == (3, 6 * 2 * 1)
    assert net(X.float()).shape == (3, 3)


@pytest.mark.parametrize("given", [np.arange(32).reshape(2, 1, 4, 4), torch.arange(32).reshape(2, 1, 4, 4).float()])
def test_images_of_any_real_type_are_read_as_float64(given: object) -> None:
    found = tower(TOWERS["pooled"]).kernel(given)  # type: ignore[arg-type]
    expected = tower(TOWERS["pooled"]).kernel(torch.arange(32).reshape(2, 1, 4, 4).double())
    assert torch.equal(found.ntk, expected.ntk)


def test_kernels_of_single_numbers_are_near_those_of_double_ones() -> None:
    made = tower(TOWERS["pooled"])
    single = made.kernel(X, dtype=torch.float32)
    assert single.ntk.dtype == torch.float32
    torch.testing.assert_close(single.ntk.double(), made.kernel(X).ntk, rtol=1e-5, atol=1e-5)
    assert made.sampled(X, dtype=torch.float32).ntk_error.dtype == torch.float32
    with pytest.raises(UserError, match="dtype="):
        made.kernel(X, dtype=torch.float16)


def test_one_image_has_kernels() -> None:
    for name in ("pooled", "residual"):
        whole = tower(TOWERS[name]).kernel(X).ntk
        torch.testing.assert_close(tower(TOWERS[name]).kernel(X[1:2]).ntk, whole[1:2, 1:2])


def test_a_sample_of_displacements_states_its_error() -> None:
    made = tower([Conv(3, 2.0), Act("relu"), Pool(), Norm(), Dense(2.0)])
    x = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(1))
    exact, found = made.kernel(x), [made.sampled(x, share=0.2, seed=seed) for seed in range(12)]
    for part in ("nngp", "ntk"):
        off = torch.stack([getattr(k.kernels, part) - getattr(exact, part) for k in found])
        stated = torch.stack([getattr(k, f"{part}_error") for k in found])
        assert (off.mean(0).abs() <= 3 * off.std(0) / math.sqrt(12)).all()
        ratio = off.square().mean().sqrt() / stated.square().mean().sqrt()
        assert 0.6 < ratio < 1.6, "about the error that it states"
        assert (stated < 0.1 * getattr(exact, part)).all()
    again, other = made.sampled(x, share=0.2, seed=3), made.sampled(x[:1], x, share=0.2, seed=3)
    assert torch.equal(again.kernels.ntk, found[3].kernels.ntk)
    torch.testing.assert_close(other.kernels.ntk, again.kernels.ntk[:1])
    assert 0.1 < again.share < 0.3


@pytest.mark.parametrize(
    "words, message",
    [
        (lambda: [Conv(3), Act("relu"), Dense()], "Pool\\(\\) or Flatten\\(\\)"),
        (lambda: [Conv(3), Dense(), Pool(), Dense()], "got Dense on images"),
        (lambda: [Dense(), Act("relu"), Pool(), Dense()], "Conv\\(1\\) for a dense layer"),
        (lambda: [Conv(3), Flatten(), Conv(3), Dense()], "got Conv after Flatten"),
        (lambda: [Conv(3), Pool(), Flatten(), Dense()], "one readout"),
        (lambda: [Conv(3), Residual([Pool(), Conv(3)]), Pool(), Dense()], "one readout"),
        (lambda: [Conv(3), Residual([Conv(3), Act("relu")]), Pool(), Dense()], "does not end with Conv"),
        (lambda: [Conv(3), Residual([Conv(3, padding="valid")]), Pool(), Dense()], "makes images smaller"),
        (lambda: [Conv(3), Act("relu"), Dropout(0.5), Pool(), Dense()], "got Dropout on images"),
        (lambda: [Residual([Conv(3)]), Pool(), Dense()], "Residual on the inputs"),
        (lambda: [Conv(3), Flatten(), Act("relu"), Dense()], "not Gaussian"),
        (lambda: [Act("relu"), Conv(3), Pool(), Dense()], "not Gaussian"),
        (lambda: [Conv(3, padding="circular"), Conv(3), Pool(), Dense()], "some are circular"),
        (lambda: [Conv(3), Act("step"), Pool(), Dense()], "no tangent kernel"),
        (lambda: [Conv(3), Pool()], "does not end with Dense"),
        (lambda: [Conv(0)], "size=0"), (lambda: [Conv(3.0)], "size=3.0"), (lambda: [Conv(3, 0.0)], "weight_variance=0"),
        (lambda: [Conv(3, padding="zeros")], "padding='zeros'"),
    ],
)  # fmt: skip
def test_words_that_make_no_tower(words: Callable[[], list[Word]], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tower(words())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "x, x2, message",
    [
        (X[0], None, "expected images"), (X[:0], None, "expected images"), (X * math.nan, None, "NaN or infinite"),
        (X, X[..., 1:], "2×5×4 and 2×5×3"), (X, X[:, :1], "one number of channels"),
        (X[..., :2, :], None, "2×4 pixels at a filter of 3×3"), (X * 1e200, None, "not finite|overflow|variance"),
        (X.to(torch.complex64), None, "complex"), ([["a"]], None, "no array"),
    ],
)  # fmt: skip
def test_images_without_kernels(x: Tensor, x2: Tensor | None, message: str) -> None:
    for readout in (Pool(), Flatten()):
        with pytest.raises(UserError, match=message) as raised:
            tower([Conv(3, 2.0), Act("relu"), readout, Dense()]).kernel(x, x2)
        assert "\n" not in str(raised.value)


def test_more_images_than_memory_are_refused_before_they_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_towers, "available_memory", lambda: 2**20)
    made = tower(TOWERS["pooled"])
    assert made.kernel(X).ntk.shape == (3, 3)
    with pytest.raises(UserError, match="fewer at a time"):
        made.kernel(torch.ones(200, 1, 3, 3))


def test_a_sample_needs_a_tower_that_pools_and_a_share() -> None:
    for made in (tower(TOWERS["flattened"]), tower([Dense()])):
        with pytest.raises(UserError, match="without Pool"):
            made.sampled(X)
    with pytest.raises(UserError, match="Act after Pool"):
        tower([Conv(3), Pool(), Residual([Dense(), Act("relu"), Dense()]), Dense()]).sampled(X)
    for share in (0.0, 1.5, math.nan, True):
        with pytest.raises(UserError, match="share="):
            tower(TOWERS["pooled"]).sampled(X, share=share)


@pytest.mark.parametrize(
    "inputs, message", [(3, "channels, height and width"), ((3, 2, 2), "2×2 pixels"), ((0, 5, 5), "from 1")]
)
def test_a_network_of_images_is_told_their_size(inputs: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tower(TOWERS["pooled"]).network(inputs, 4)
    with pytest.raises(UserError, match="expected a number"):
        tower([Dense()]).network((3, 5, 5), 4)
