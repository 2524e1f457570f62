from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import blocks_of, column, first, loss, tables
from torch import nn
from zoo import WIDTH, gpt2, llama, token_ids, vectors

from layerwright.measures.first_order_skip import first_order_skip


def test_hand_value() -> None:
    update, gradient = torch.tensor([[[1.0, 2.0], [1.0, 0.0]]]), torch.tensor([[[0.5, -1.0], [2.0, 9.0]]])
    assert first_order_skip(update, gradient).tolist() == [[1.5, -2.0]]


def naive(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """−⟨∂loss/∂h_{l+1}, c_l⟩ from one graph of the whole model; the first token is not skipped."""
    h: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        h.append(first(output))

    blocks = blocks_of(model)
    handles = [blocks[0].register_forward_pre_hook(lambda m, x: h.append(x[0]))]
    handles += [block.register_forward_hook(keep) for block in blocks]
    value = loss(model.eval()(input_ids=ids, use_cache=False).logits, ids)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(value, h[1:])
    return torch.stack([-(g * (y - x))[:, 1:].sum() for g, x, y in zip(gradients, h, h[1:], strict=False)]).detach()


def test_by_one_graph_of_the_whole_model() -> None:
    model, ids = gpt2().double(), token_ids(5)
    frame = tables(model, {"input_ids": ids}, "first_order_skip")["first_order_skip"]
    torch.testing.assert_close(column(frame), naive(model, ids), rtol=1e-5, atol=1e-8)


def test_it_is_the_slope_of_the_loss_as_the_block_fades() -> None:
    """Fade a block's update by ε at every token but the first: (loss(ε) − loss(−ε)) / 2ε."""
    model, ids = gpt2().double(), token_ids(5)
    found = column(tables(model, {"input_ids": ids}, "first_order_skip")["first_order_skip"])
    model.eval()
    for k, block in enumerate(blocks_of(model)):
        values = []
        for epsilon in (1e-4, -1e-4):

            def fade(module: nn.Module, args: Any, output: Any, e: float = epsilon) -> Any:
                x, y = args[0], first(output).clone()
                y[:, 1:] -= e * (y - x)[:, 1:]
                return y if isinstance(output, torch.Tensor) else (y, *output[1:])

            handle = block.register_forward_hook(fade)
            with torch.no_grad():
                values.append(loss(model(input_ids=ids, use_cache=False).logits, ids))
            handle.remove()
        slope = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close(found[k], slope, rtol=1e-5, atol=1e-8)


def test_turning_both_changes_nothing() -> None:
    update, gradient = vectors(2, 5, WIDTH), vectors(3, 5, WIDTH)[1:].flip(0)
    turn = torch.linalg.qr(vectors(WIDTH, WIDTH)).Q
    torch.testing.assert_close(
        first_order_skip(update @ turn, gradient @ turn), first_order_skip(update, gradient), rtol=1e-4, atol=1e-5
    )


def test_sequences_in_another_order() -> None:
    model, ids = llama(), token_ids(4)
    there, back = (
        column(tables(model, {"input_ids": x}, "first_order_skip")["first_order_skip"]) for x in (ids, ids.flip(0))
    )
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-6)


def test_a_dead_block_costs_nothing() -> None:
    model = llama()
    for p in (blocks_of(model)[1].self_attn.o_proj.weight, blocks_of(model)[1].mlp.down_proj.weight):
        nn.init.zeros_(p)
    found = column(tables(model, {"input_ids": token_ids()}, "first_order_skip")["first_order_skip"])
    assert found[1] == 0.0
    assert (found[[0, 2]] != 0).all()


def test_needs_labels() -> None:
    assert "first_order_skip" not in tables(nn.Sequential(nn.Tanh(), nn.Tanh()), vectors(3, WIDTH), "first_order_skip")


def test_the_mean_over_tokens_is_the_change_of_the_mean_loss_also_where_lengths_differ() -> None:
    model, ids = llama(), token_ids(2)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    found = column(tables(model, {"input_ids": ids, "attention_mask": mask}, "first_order_skip")["first_order_skip"])
    alone = [naive(model, ids[:1]), naive(model, ids[1:, :5])]
    # Sequences weigh by their tokens: 12 and 5.
    torch.testing.assert_close(found.float(), (12 * alone[0] + 5 * alone[1]) / 17, rtol=1e-3, atol=1e-6)
    assert found[0].item() == pytest.approx(((12 * alone[0] + 5 * alone[1]) / 17)[0].item(), rel=1e-3)
