"""Gradients and Jacobians, one block's graph at a time, equal those of the whole graph."""

from __future__ import annotations

from typing import Any

import torch
from naive import blocks_of, first, loss
from torch import Tensor, nn
from zoo import WIDTH, ZOO, gpt2, llama, token_ids, vectors

from layerwright.core.backward import BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack


class Listener(Desk):
    """Keeps what it is given."""

    def __init__(self, *scopes: str) -> None:
        super().__init__([], {})
        self.scopes, self.given = scopes, {}

    def wants(self, *scopes: str) -> bool:
        return any(scope in self.scopes for scope in scopes)

    def give(self, scope: str, key: Any, quantities: Any, prefix: str = "") -> None:
        self.given[scope, key[0]] = quantities


def backward(model: nn.Module, inputs: Any, *scopes: str, prefix: int = 0) -> dict:
    stack = Stack.find(model, inputs)
    desk = Listener(*scopes)
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        batch = Batch(inputs, 0, prefix, 4, 0)
        batch.settle(stack.layout.tokens(replay.states[0]), replay.states[0])
        BackwardPass(stack, desk, batch, replay, seed=0).run(lambda n: None)
    return desk.given


def whole_graph(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Derivative of the mean loss by each block's output, in one backward pass through everything."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        first(output).retain_grad()
        outputs.append(first(output))

    handles = [block.register_forward_hook(keep) for block in blocks_of(model)]
    loss(model.eval()(input_ids=ids, use_cache=False).logits, ids).backward()
    for handle in handles:
        handle.remove()
    return [x.grad for x in outputs]


def test_gradients_of_the_mean_loss_times_tokens() -> None:
    model, ids = gpt2().double(), token_ids()
    given = backward(model, {"input_ids": ids}, "gradient")
    for k, expected in enumerate(whole_graph(model, ids)):
        found = given["gradient", k]["gradient"]
        assert (found[:, 0] == 0).all()  # a skip leaves the first token alone
        torch.testing.assert_close(found[:, 1:], expected[:, 1:] * ids.numel(), rtol=1e-7, atol=1e-9)


def test_padding_in_front_changes_no_gradient() -> None:
    model, ids = llama(), token_ids(1, 9)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    padded = backward(model, {"input_ids": ids, "attention_mask": mask}, "gradient")
    plain = backward(model, {"input_ids": ids[:, 3:]}, "gradient")
    for k in range(3):
        found, expected = padded["gradient", k]["gradient"], plain["gradient", k]["gradient"]
        assert (found[:, :4] == 0).all()
        torch.testing.assert_close(found[:, 3:], expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_is_left_out_of_the_loss() -> None:
    model, ids = gpt2().double(), token_ids(1, 6)
    given = backward(model, {"input_ids": ids}, "gradient", prefix=2)
    for k, expected in enumerate(whole_graph_after(model, ids, 2)):
        torch.testing.assert_close(given["gradient", k]["gradient"][:, 1:], 4 * expected[:, 1:])


def whole_graph_after(model: nn.Module, ids: Tensor, prefix: int) -> list[Tensor]:
    outputs: list[Tensor] = []
    handles = [b.register_forward_hook(lambda m, x, y: outputs.append(first(y))) for b in blocks_of(model)]
    logits = model.eval()(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return list(torch.autograd.grad(loss(logits[:, prefix:], ids[:, prefix:]), outputs))


def test_pullback_is_the_transposed_jacobian() -> None:
    model, inputs = gpt2(num_hidden_layers=2).double(), {"input_ids": token_ids(2, 5)}
    given = backward(model, inputs, "jacobian")
    with undisturbed(model):
        replay = Replay(Stack.find(model, inputs), inputs)
        for k in range(2):
            probe, pullback = given["jacobian", k]["probe"].double(), given["jacobian", k]["pullback"]
            jacobian = torch.autograd.functional.jacobian(lambda x, k=k: replay.block(k, x), replay.states[k].detach())
            n = probe.numel()
            expected = (jacobian.reshape(n, n).T @ probe.flatten()).reshape(probe.shape)
            torch.testing.assert_close(pullback, expected, rtol=1e-6, atol=1e-9)


def test_probes_belong_to_sequences_and_stay_off_padding() -> None:
    ids = token_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    given = backward(llama(), {"input_ids": ids, "attention_mask": mask}, "jacobian")["jacobian", 1]
    assert (given["probe"][0, 4:] == 0).all()
    assert (given["pullback"][0, 4:] == 0).all()
    alone = backward(llama(), {"input_ids": ids[:1, :4]}, "jacobian")["jacobian", 1]
    assert torch.equal(alone["probe"][0], given["probe"][0, :4])
    torch.testing.assert_close(alone["pullback"][0], given["pullback"][0, :4], rtol=1e-4, atol=1e-5)


def test_probes_are_standard_normal() -> None:
    probe = backward(nn.Sequential(nn.Tanh(), nn.Tanh()), vectors(4000, WIDTH), "jacobian")["jacobian", 0]["probe"]
    n = probe.numel()
    assert abs(probe.mean()) < 4 / n**0.5
    assert abs(probe.var() - 1) < 4 * (2 / n) ** 0.5


def test_no_gradient_reaches_a_weight() -> None:
    for name in ("llama", "vit", "looped core"):
        model, inputs, _ = ZOO[name]()
        if name == "vit":
            inputs = {**inputs, "labels": torch.tensor([0, 1, 0])}
        backward(model, inputs, "gradient", "jacobian")
        assert all(p.grad is None for p in model.parameters())


def test_without_labels_there_is_no_gradient() -> None:
    model, inputs, _ = ZOO["bert"]()
    assert backward(model, inputs, "gradient") == {}
