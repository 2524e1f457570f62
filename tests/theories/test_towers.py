"""Kernels of infinite width against finite networks made of the same words, within three standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from layerwright.core.errors import UserError
from layerwright.theories.towers import Act, Dense, Dropout, Norm, Residual, Tower, Word, tower

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BLOCK = [Act("relu"), Dense(2.0)]
TOWERS: dict[str, list[Word]] = {
    "relu": [Dense(2.0), *BLOCK, Act("relu"), Dense()],
    "gelu with biases": [Dense(1.5, 0.3), Act("gelu"), Dense(1.5, 0.3), Act("gelu"), Dense(1.0, 0.2)],
    "tanh": [Dense(3.0), Act("tanh"), Dense(3.0, 0.1), Act(nn.Tanh()), Dense()],
    "residual": [Dense(), Residual(BLOCK, 0.5), Residual(BLOCK, 0.5), Dense()],
    "before norms": [Norm(), Dense(), Residual([Norm(), Act("erf"), Dense(2.0, 0.1)]), Norm(0.1), Act("silu"), Dense()],
    "dropout": [Dense(2.0), Act("relu"), Dropout(0.7), Dense(2.0), Residual([Dropout(0.5), Dense()]), Dense()],
}


def samples_of(words: Sequence[Word], width: int, seeds: int) -> tuple[Tensor, Tensor]:
    """f fᵀ over outputs, and the tangent kernel of the first by layer, of some networks."""
    torch.manual_seed(0)  # of dropout's masks
    covariances, tangents = [], []
    for seed in range(seeds):
        net = tower(words).network(X.shape[1], width, outputs=width, seed=seed).double()
        f = net(X).detach()
        covariances.append(f @ f.T / width)
        tangents.append(tangent(tower(words).network(X.shape[1], width, seed=seed).double(), X))
    return torch.stack(covariances), torch.stack(tangents)


def tangent(net: nn.Module, x: Tensor) -> Tensor:
    """The empirical tangent kernel of the one output, by dense layer."""
    values = {name: p.detach() for name, p in net.named_parameters()}

    def output(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(net, p, (row,)).squeeze()

    found = vmap(grad(output), (None, 0), randomness="different")(values, x)
    layers: dict[str, Tensor] = {}
    for name, g in found.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, torch.zeros(())) + g.flatten(1) @ g.flatten(1).T
    return torch.stack(list(layers.values()))


@pytest.mark.parametrize("name", TOWERS)
def test_finite_networks_agree_within_three_standard_errors(name: str) -> None:
    words = TOWERS[name]
    covariances, tangents = samples_of(words, width=192, seeds=40)
    made = tower(words)
    for seen, expected in (
        (covariances, made.kernel(X).nngp), (tangents.sum(1), made.kernel(X).ntk), (tangents, made.split(X)),
    ):  # fmt: skip
        error = seen.std(0) / math.sqrt(len(seen))
        assert ((seen.mean(0) - expected).abs() <= 3 * error + 1e-12).all()
        assert error.max() < 0.12 * expected.abs().max(), "an error small enough to see anything"


def test_a_wide_network_has_nearly_the_tangent_kernel_of_the_limit() -> None:
    made = tower(TOWERS["relu"])
    exact = made.kernel(X).ntk
    found = torch.stack([tangent(made.network(6, 512, seed=s).double(), X).sum(0) for s in range(4)])
    assert ((found.mean(0) - exact).norm() / exact.norm()) < 0.04


def test_the_split_adds_up_and_its_last_part_is_the_covariance() -> None:
    made = tower(TOWERS["residual"])
    parts, whole = made.split(X, X[:2]), made.kernel(X, X[:2])
    assert parts.shape == (4, 3, 2)
    torch.testing.assert_close(parts.sum(0), whole.ntk)
    torch.testing.assert_close(parts[-1], whole.nngp)


def test_a_network_is_drawn_by_its_seed() -> None:
    made = tower(TOWERS["before norms"])
    one, same, other = (made.network(6, 8, 2, seed=s)(X.float()) for s in (1, 1, 2))
    assert one.shape == (3, 2)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_one_dense_layer_is_linear_regression() -> None:
    made = tower([Dense()])
    torch.testing.assert_close(made.kernel(X).ntk, X @ X.T / 6)
    torch.testing.assert_close(tangent(made.network(6, 1).double(), X)[0], X @ X.T / 6)


@pytest.mark.parametrize(
    "given", [np.array([[1, 2], [3, 4]]), [[1.0, 2.0], [3.0, 4.0]], torch.tensor([[1, 2], [3, 4]]).float()]
)
def test_arrays_of_any_real_type_are_read_as_float64(given: object) -> None:
    found = tower(TOWERS["relu"]).kernel(given)  # type: ignore[arg-type]
    expected = tower(TOWERS["relu"]).kernel(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    assert torch.equal(found.ntk, expected.ntk)


@pytest.mark.parametrize(
    "words, message",
    [
        (lambda: None, "got NoneType as words of a tower"), (lambda: Dense(), "got Dense as words of a tower"),
        (lambda: [Residual(Dense())], "got Dense as a branch"), (lambda: [Act(np.tanh)], "does not run on a tensor"),
        (lambda: [], "does not end with Dense"), (lambda: [Dense(), Act("relu")], "does not end with Dense"),
        (lambda: [Act("relu"), Dense()], "units that are not Gaussian"),
        (lambda: [Norm(), Act("relu"), Dense()], "units that are not Gaussian"),
        (lambda: [Dense(), Act("relu"), Act("relu"), Dense()], "units that are not Gaussian"),
        (lambda: [Dense(), Dropout(0.5), Act("relu"), Dense()], "units that are not Gaussian"),
        (lambda: [Residual([Dense()]), Dense()], "Residual on the inputs"),
        (lambda: [Dropout(0.5), Dense()], "Dropout on the inputs"),
        (lambda: [Dense(), Residual([Act("relu")]), Dense()], "branch that does not end with Dense"),
        (lambda: [Dense(), nn.ReLU(), Dense()], "got ReLU in a tower"),
        (lambda: [Act("step")], "no tangent kernel"), (lambda: [Act(torch.sign)], "no tangent kernel"),
        (lambda: [Act(lambda x: torch.where(x > 0, x + 1, x))], "no tangent kernel"),
        (lambda: [Act("rellu")], "nearest: 'relu'"),
        (lambda: [Dense(0.0)], "weight_variance=0.0"), (lambda: [Dense(1.0, -1.0)], "bias_variance=-1.0"),
        (lambda: [Dense(math.inf)], "weight_variance=inf"), (lambda: [Norm(0.0)], "eps=0.0"),
        (lambda: [Dropout(0.0)], "keep=0.0"), (lambda: [Residual([Dense()], math.nan)], "scale=nan"),
    ],
)  # fmt: skip
def test_words_that_make_no_tower(words: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        tower(words())  # type: ignore[operator]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.array([["a"]]), "can't convert"), (None, "no array of numbers"), ("data", "no array of numbers"),
        (X[0], "expected rows"), (X * math.nan, "NaN or infinite"),
        (X * 1e200, "not finite|overflow"), (X.to(torch.complex64), "complex"),
    ],
)  # fmt: skip
def test_inputs_without_kernels(x: object, message: str) -> None:
    made: Tower = tower(TOWERS["relu"])
    with pytest.raises(UserError, match=message) as raised:
        made.kernel(x)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_sizes_of_a_network_are_whole_numbers() -> None:
    with pytest.raises(UserError, match="seed='a'"):
        tower([Dense()]).network(3, 8, seed="a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got NoneType as the folder"):
        tower([Dense()]).kernel_to(None, X)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="width=0"):
        tower([Dense()]).network(3, 0)
    with pytest.raises(UserError, match="inputs=None"):
        tower([Dense()]).network(None, 3)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    made = tower([Dense(np.float32(2.0)), Residual([Norm(np.float64(0.1)), Dense()], np.float32(0.5)), Dense()])
    same = tower([Dense(2.0), Residual([Norm(0.1), Dense()], 0.5), Dense()])
    assert torch.equal(made.kernel(X).ntk, same.kernel(X).ntk)
    assert torch.equal(made.network(np.int64(6), 4)(X.float()), same.network(6, 4)(X.float()))
