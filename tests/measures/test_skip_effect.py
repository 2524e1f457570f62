from __future__ import annotations

import pytest
import torch
from naive import blocks_of, column, splits, stream, tables, without
from zoo import WIDTH, gpt2, llama, token_ids, vectors

from layerwright.measures.skip_effect import skip_effect

DEPTH = 4


def test_hand_value() -> None:
    update, skipped = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 1.0]]])
    torch.testing.assert_close(skip_effect(update, skipped), torch.tensor([[0.6]]))


@pytest.mark.parametrize("kind", ["later", "future"])
def test_as_the_paper_does_it(kind: str) -> None:
    """L full runs, each with one block handing on its input (the first token kept): ‖c_l − c̄_l‖ / ‖c_l‖.

    For the future the block is bypassed before a token t_s only, and the effect is read from t_s on.
    """
    model, ids = gpt2(num_hidden_layers=DEPTH).double(), token_ids(5, 16)
    frame = tables(model, {"input_ids": ids}, "skip_effect")["skip_effect"]
    h, _, _ = stream(model, ids)
    until = splits(5, 16) if kind == "future" else None
    pairs = 0
    for s in range(DEPTH):
        skipped, _ = without(model, s, ids, until)
        for k in range(s + 1, DEPTH):
            c, other = h[k + 1] - h[k], skipped[k + 1] - skipped[k]
            effect = (c - other).norm(dim=-1) / c.norm(dim=-1).clamp_min(1e-6)
            seen = torch.arange(16) >= (0 if until is None else until[:, None])
            effect = effect[seen.expand(5, 16)]
            row = {"source": s, "block": k, "quantity": kind}
            torch.testing.assert_close(column(frame, **row)[0], effect.mean(), rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(column(frame, "max", **row)[0], effect.max(), rtol=1e-5, atol=1e-9)
            assert column(frame, "tokens", **row).item() == len(effect)
            pairs += 1
    assert len(frame) == 2 * pairs == DEPTH * (DEPTH - 1)


def test_the_first_token_is_never_touched() -> None:
    frame = tables(gpt2(), {"input_ids": token_ids(4, 2)[:, :1].expand(4, 2)}, "skip_effect", prefix=1)["skip_effect"]
    assert (frame[frame["quantity"] == "later"]["tokens"] == 4).all()
    one = tables(llama(), {"input_ids": token_ids(4, 1)}, "skip_effect").get("skip_effect")
    assert one is None or (one["value"].fillna(0) >= 0).all()


def test_scale_and_rotation() -> None:
    update, skipped = vectors(2, 5, WIDTH), vectors(3, 5, WIDTH)[1:]
    turn = torch.linalg.qr(vectors(WIDTH, WIDTH)).Q
    torch.testing.assert_close(
        skip_effect(9 * update @ turn, 9 * skipped @ turn), skip_effect(update, skipped), rtol=1e-4, atol=1e-6
    )


def test_skipping_a_dead_block_changes_nothing_and_a_dead_block_hears_nothing() -> None:
    model = llama(num_hidden_layers=DEPTH)
    for p in (blocks_of(model)[1].self_attn.o_proj.weight, blocks_of(model)[1].mlp.down_proj.weight):
        torch.nn.init.zeros_(p)
    frame = tables(model, {"input_ids": token_ids()}, "skip_effect")["skip_effect"]
    dead = frame[(frame["source"] == 1) | (frame["block"] == 1)]
    assert len(dead) > 0
    assert (dead[["value", "max"]] == 0).all(axis=None)
    assert (frame.drop(dead.index)["value"] > 0).all()
