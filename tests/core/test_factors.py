"""Gradients of every weight matrix of a block, from the backward walk, against autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import blocks_of, loss
from torch import Tensor, nn
from zoo import gpt2, llama, token_ids

from layerwright.core.backward import BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.factors import FactorWatch, unread
from layerwright.core.layout import Layout
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack


class Keeper(Desk):
    """Keeps the gradients it is given, dense."""

    def __init__(self) -> None:
        super().__init__([], {})
        self.dense: dict[tuple[int, str], Tensor] = {}
        self.values: dict[tuple[int, str], Tensor] = {}
        self.losses: Tensor | None = None

    def wants(self, *scopes: str) -> bool:
        return bool({"matrix", "matrix_pair"} & set(scopes))

    def first(self, *scopes: str) -> int:
        return 100

    def give(self, scope: str, key: Any, quantities: Any, prefix: str = "") -> None:
        if scope == "matrix":
            gradient, self.losses = quantities["matrix_gradient"], quantities["loss"]
            self.values[key], self.dense[key] = gradient.values(), gradient.dense()


def walked(model: nn.Module, inputs: Any) -> tuple[Keeper, Stack]:
    stack, desk = Stack.find(model, inputs), Keeper()
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        batch = Batch(inputs, 0, 0, 4, 0)
        batch.settle(stack.layout.tokens(replay.states[0]), replay.states[0])
        BackwardPass(stack, desk, batch, replay, seed=0).run(lambda n: None)
    return desk, stack


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_gradients_of_one_sequence_are_autograds(make: Any) -> None:
    model, ids = make().double().eval(), token_ids(3, 7)
    desk, _ = walked(model, {"input_ids": ids})
    for b in range(3):
        model.zero_grad()
        value = loss(model(input_ids=ids[b : b + 1], use_cache=False).logits, ids[b : b + 1])
        value.backward()
        assert abs(desk.losses[b] - value) < 1e-9
        for k, block in enumerate(blocks_of(model)):
            for name, module in block.named_modules():
                weight = getattr(module, "weight", None)
                if weight is None or weight.ndim != 2:
                    continue
                expected = weight.grad if isinstance(module, nn.Linear) else weight.grad.T
                # Some norms compute in float32 whatever the model does.
                assert (desk.dense[k, name][b] - expected).norm() <= 1e-6 * expected.norm()
                values = torch.linalg.svdvals(expected)[: desk.values[k, name].shape[1]]
                torch.testing.assert_close(desk.values[k, name][b], values, rtol=1e-4, atol=1e-7)


def test_frozen_weights_are_measured_and_stay_without_gradient() -> None:
    model, ids = llama().requires_grad_(False), token_ids(2, 7)
    desk, _ = walked(model, {"input_ids": ids})
    assert all(values.amax() > 0 for values in desk.values.values())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


# Blocks that use their weights in other ways


class Sum(nn.Module):
    """A block of two parts, as the test wants it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)


def watched(block: nn.Module, x: Tensor, weights: Tensor) -> FactorWatch:
    """A watch that has seen the way back from Σ weights · block(x)."""
    watch = FactorWatch(block, Layout(0, x.ndim - 1 if x.ndim < 4 else 1, x.ndim), len(x), x[0].numel() // x.shape[-1])
    for p in block.parameters():
        p.requires_grad_(False)
    x = x.clone().requires_grad_()
    with watch.watching():
        out = block(x)
    torch.autograd.grad(out, [x, *watch.leaves], weights, allow_unused=True)
    return watch


def by_autograd(block: nn.Module, x: Tensor, weights: Tensor, parameter: Tensor) -> Tensor:
    parameter.requires_grad_()
    found = [torch.autograd.grad((block(x[b : b + 1]) * weights[b : b + 1]).sum(), parameter)[0] for b in range(len(x))]
    parameter.requires_grad_(False)
    return torch.stack(found).flatten(2)


def check(block: nn.Module, x: Tensor, name: str, parameter: Tensor) -> None:
    weights = torch.randn(block(x).shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = watched(block, x, weights).gradients(torch.ones(len(x)))[name].dense()
    torch.testing.assert_close(found, by_autograd(block, x, weights, parameter))


class Twice(nn.Module):
    """One matrix, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(torch.tanh(self.map(x)))


class Shared(nn.Module):
    """Two modules, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Overwritten(nn.Module):
    """A matrix whose output is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu_(self.map(x))


class Beside(nn.Module):
    """A matrix that does not read the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)
        self.register_buffer("other", torch.linspace(-1, 1, 6).double())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.map(self.other.expand_as(x))


@pytest.mark.parametrize("part", [Twice, Shared, Overwritten, Beside])
def test_every_use_of_a_matrix_counts(part: type[nn.Module]) -> None:
    torch.manual_seed(0)
    block, x = Sum(part()).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    name = "part.one" if part is Shared else "part.map"
    check(block, x, name, block.get_submodule(name).weight)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same", dilation=2), nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 5, padding=2, bias=False),
    ],
    ids=["3", "dilated", "1", "5"],
)  # fmt: skip
def test_a_convolution_is_a_matrix_of_its_patches(conv: nn.Conv2d) -> None:
    block, x = Sum(conv).double(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    check(block, x, "part", conv.weight)


def test_a_convolution_over_one_axis() -> None:
    conv = nn.Conv1d(4, 4, 3, padding=1)
    block, x = Sum(conv).double(), torch.randn(2, 4, 9, dtype=torch.float64)
    weights = torch.randn_like(x)
    watch = FactorWatch(block, Layout(0, 1, 3), 2, 9)
    y = x.clone().requires_grad_()
    with watch.watching():
        out = block(y)
    torch.autograd.grad(out, y, weights)
    found = watch.gradients(torch.ones(2))["part"].dense()
    torch.testing.assert_close(found, by_autograd(block, x, weights, conv.weight))


def test_tokens_in_one_row_are_told_apart_by_sequence() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x.reshape(-1, 6)).view_as(x)

    block, x = Sum(Flat()).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    check(block, x, "part.map", block.part.map.weight)


def test_what_no_module_reads_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.experts = nn.Linear(6, 6), nn.Parameter(torch.ones(2, 6, 6))

    assert unread(Own(), ["map"]) == ["experts"]
