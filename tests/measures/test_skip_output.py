from __future__ import annotations

import copy

import pytest
import torch
from naive import blocks_of, column, forward, loss, splits, tables, without
from torch import nn
from torch.nn.functional import cross_entropy
from zoo import ZOO, Looped, gpt2, llama, token_ids

from layerwright.measures.skip_output import skip_output


def test_hand_values() -> None:
    """(½, ½) becomes (¾, ¼): the shift is √2/4, the loss of the second class rises by ln 2."""
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.75, 0.25]]]).log()
    found = skip_output(p, q, torch.tensor([[1]]))
    assert found["probability_shift"].item() == pytest.approx(2**0.5 / 4)
    assert found["kl"].item() == pytest.approx(0.5 * torch.tensor(4 / 3).log().item())
    rise, labelled = found["loss_increase"]
    assert rise.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert labelled.item()
    assert not skip_output(p, q, torch.tensor([[-100]]))["loss_increase"][1].item()


@pytest.mark.parametrize("kind", ["later", "future"])
def test_as_the_paper_does_it(kind: str) -> None:
    """L full runs: ‖softmax(y) − softmax(ȳ)‖₂ over tokens, its maximum; beside it KL and the rise of the loss."""
    model, ids = gpt2(num_hidden_layers=4).double(), token_ids(5, 16)
    frame = tables(model, {"input_ids": ids}, "skip_output")["skip_output"]
    base = forward(model, ids)
    until = splits(5, 16) if kind == "future" else None
    seen = (torch.arange(16) >= (0 if until is None else until[:, None])).expand(5, 16)
    prefix = "future_" if kind == "future" else ""
    for s in range(4):
        _, changed = without(model, s, ids, until)
        shift = (base.softmax(-1) - changed.softmax(-1)).norm(dim=-1)[seen]
        kl = (base.softmax(-1) * (base.log_softmax(-1) - changed.log_softmax(-1))).sum(-1)[seen]
        labels = ids[:, 1:]
        rise = [cross_entropy(x[:, :-1].transpose(1, 2), labels, reduction="none") for x in (changed, base)]
        rise = (rise[0] - rise[1])[seen[:, :-1]]
        for name, values in (("probability_shift", shift), ("kl", kl), ("loss_increase", rise)):
            row = {"source": s, "quantity": prefix + name}
            torch.testing.assert_close(column(frame, **row)[0], values.mean(), rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(column(frame, "max", **row)[0], values.max(), rtol=1e-5, atol=1e-8)


def test_the_loss_rises_as_if_the_block_were_taken_out_of_the_model() -> None:
    """In an encoder a skip is a removal: take the block out of the ModuleList."""
    model, inputs, _ = ZOO["bert"]()
    labels = token_ids(seed=5)
    frame = tables(model, {**inputs, "labels": labels}, "skip_output")["skip_output"]
    model.eval()

    def mean_loss(m: nn.Module) -> float:
        with torch.no_grad():
            return cross_entropy(m(**inputs).logits.flatten(0, 1), labels.flatten()).item()

    for s in range(3):
        smaller = copy.deepcopy(model)
        del smaller.bert.encoder.layer[s]
        expected = mean_loss(smaller) - mean_loss(model)
        assert column(frame, source=s, quantity="loss_increase").item() == pytest.approx(expected, abs=2e-6)


def test_the_same_in_a_language_model_where_tokens_do_not_meet() -> None:
    """Leaving the first token alone makes no difference to the others if no block looks back."""
    model, ids = Looped(), token_ids(5)
    model.core.append(copy.deepcopy(model.core[0]))
    frame = tables(model, {"input_ids": ids}, "skip_output", prefix=1)["skip_output"]
    h = model.embedding(ids)
    order = [0, 1, 2] * 3
    for s in range(9):
        x = h
        y = h
        for k, b in enumerate(order):
            y = model.core[b](y)
            x = x if k == s else model.core[b](x)
        expected = loss(model.head(x)[:, 1:], ids[:, 1:]) - loss(model.head(y)[:, 1:], ids[:, 1:])
        assert column(frame, source=s, quantity="loss_increase").item() == pytest.approx(expected.item(), abs=2e-6)


def test_the_order_of_classes_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 3, 9, generator=generator).log_softmax(-1) for _ in range(2))
    labels = torch.randint(0, 9, (2, 3), generator=generator)
    order = torch.randperm(9, generator=generator)
    found, expected = skip_output(p[..., order], q[..., order], order.argsort()[labels]), skip_output(p, q, labels)
    for name in ("probability_shift", "kl"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found["loss_increase"][0], expected["loss_increase"][0])


def test_skipping_a_dead_block_costs_nothing() -> None:
    model = llama()
    for p in (blocks_of(model)[1].self_attn.o_proj.weight, blocks_of(model)[1].mlp.down_proj.weight):
        nn.init.zeros_(p)
    frame = tables(model, {"input_ids": token_ids()}, "skip_output")["skip_output"]
    assert (frame[frame["source"] == 1][["value", "max"]] == 0).all(axis=None)
