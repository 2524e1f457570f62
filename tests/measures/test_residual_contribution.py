from __future__ import annotations

import torch
from naive import blocks_of, column, stream, tables
from zoo import gpt2, llama, token_ids

from layerwright.measures.residual_contribution import residual_contribution


def test_hand_value() -> None:
    before = torch.tensor([[[6.0, 8.0], [0.0, 0.0]]])
    update = torch.tensor([[[0.0, 5.0], [0.0, 0.0]]])
    assert residual_contribution(update, before).tolist() == [[0.5, 0.0]]


def test_as_the_paper_does_it() -> None:
    """Σ over tokens of ‖a‖/‖h‖, ‖m‖/‖h + a‖ and ‖a + m‖/‖h‖, over the number of tokens; denominators at least 1e-6."""
    model, ids = gpt2().double(), token_ids(5)
    frame = tables(model, {"input_ids": ids}, "residual_contribution")["residual_contribution"]
    sums = {part: torch.zeros(3, dtype=torch.float64) for part in ("attention", "mlp", "block")}
    tokens = 0
    for sequence in ids:
        h, a, m = stream(model, sequence[None])
        for k in range(3):
            for t in range(12):
                x, y, z = h[k][0, t], a[k][0, t], m[k][0, t]
                sums["attention"][k] += y.norm() / x.norm().clamp_min(1e-6)
                sums["mlp"][k] += z.norm() / (x + y).norm().clamp_min(1e-6)
                sums["block"][k] += (y + z).norm() / x.norm().clamp_min(1e-6)
        tokens += 12
    for part, total in sums.items():
        torch.testing.assert_close(column(frame, part=part), total / tokens, rtol=1e-6, atol=0)


def test_scaling_or_turning_both_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    update, before = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    expected = residual_contribution(update, before)
    torch.testing.assert_close(residual_contribution(1e3 * update, 1e3 * before), expected)
    torch.testing.assert_close(residual_contribution(update @ turn, before @ turn), expected)
    torch.testing.assert_close(residual_contribution(3 * update, before), 3 * expected)


def test_a_block_that_does_nothing_contributes_nothing() -> None:
    model = llama()
    for p in (blocks_of(model)[1].self_attn.o_proj.weight, blocks_of(model)[1].mlp.down_proj.weight):
        torch.nn.init.zeros_(p)
    frame = tables(model, {"input_ids": token_ids()}, "residual_contribution")["residual_contribution"]
    dead = frame[frame["block"] == 1]
    assert set(dead["part"]) == {"attention", "mlp", "block"}
    assert (dead[["value", "max", "std"]] == 0).all(axis=None)
    assert (frame[frame["block"] != 1]["value"] > 0).all()


def test_a_stream_of_zeros_divides_by_the_floor() -> None:
    update = torch.full((1, 1, 4), 1e-3)
    torch.testing.assert_close(residual_contribution(update, torch.zeros(1, 1, 4)), torch.tensor([[2e3]]))
