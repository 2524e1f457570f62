from __future__ import annotations

import pytest
import torch
from naive import blocks_of, column, stream, tables
from zoo import WIDTH, gpt2, llama, token_ids, vectors

from layerwright.measures.block_influence import block_influence


def test_hand_values() -> None:
    before = torch.tensor([[[1.0, 0.0]] * 3])
    after = torch.tensor([[[7.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]])
    assert block_influence(before, after).tolist() == [[0.0, 1.0, 2.0]]


def test_as_the_paper_does_it() -> None:
    """1 − E[ xᵀy / (‖x‖ ‖y‖) ] over all tokens."""
    model, ids = gpt2().double(), token_ids(5)
    found = column(tables(model, {"input_ids": ids}, "block_influence")["block_influence"])
    h, _, _ = stream(model, ids)
    for k in range(3):
        x, y = h[k].flatten(0, 1), h[k + 1].flatten(0, 1)
        cosines = [float(p @ q / (p.norm() * q.norm())) for p, q in zip(x, y, strict=True)]
        assert found[k].item() == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)


def test_turning_and_scaling_change_nothing() -> None:
    before, after = vectors(2, 5, WIDTH), vectors(3, 5, WIDTH)[1:].flip(1)
    turn = torch.linalg.qr(vectors(WIDTH, WIDTH)).Q
    expected = block_influence(before, after)
    torch.testing.assert_close(block_influence(4 * before @ turn, 0.1 * after @ turn), expected, rtol=1e-5, atol=1e-6)


def test_a_dead_block_has_none_and_a_zero_state_one() -> None:
    model = llama()
    for p in (blocks_of(model)[1].self_attn.o_proj.weight, blocks_of(model)[1].mlp.down_proj.weight):
        torch.nn.init.zeros_(p)
    found = column(tables(model, {"input_ids": token_ids()}, "block_influence")["block_influence"])
    assert found[1].item() == pytest.approx(0.0, abs=1e-6)
    x = vectors(1, 2, WIDTH)
    assert (block_influence(x, 0 * x) == 1).all()
    assert (block_influence(0 * x, x) == 1).all()
