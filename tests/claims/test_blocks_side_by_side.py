from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import blocks_side_by_side as claim
from layerwright.claims import byte_models
from layerwright.core.trials import Budget

TINY = {"filters": 4, "blocks": 3, "updates": 3, "width": 16, "depth": 2, "steps": 2, "rows": 2}


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(byte_models, "text", lambda: (ids, ids))
    monkeypatch.setattr(claim, "text", lambda: (ids, ids))
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["sequential"] == pytest.approx(np.log(10), rel=0.1)
    assert verdict.holds is None  # after three steps one block is as good as any


@pytest.mark.parametrize("head", claim.HEADS)
def test_side_by_side_every_block_reads_the_first_state(head) -> None:
    x = torch.randn(2, 1, 8, 8)
    one, other = (claim.images(arm, head, 4, 3, seed=0) for arm in ("sequential", "parallel"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    start = one.stem(x)
    in_turn = start
    for block in one.blocks:
        in_turn = in_turn + block(in_turn).relu()
    beside = start + sum(block(start).relu() for block in one.blocks)
    for tower, h in ((one, in_turn), (other, beside)):
        torch.testing.assert_close(tower(x), tower.head(h.mean((2, 3)) if head == "mean" else h.flatten(1)))


def test_one_block_is_one_of_the_same_kind() -> None:
    alone = claim.images("one block", "mean", 4, 3, seed=0)
    assert len(alone.blocks) == 1
    assert torch.equal(alone.stem.weight, claim.images("parallel", "mean", 4, 3, seed=0).stem.weight)


def test_joined_blocks_of_text_are_one_block_as_wide_as_all() -> None:
    one, other = (claim.texts(arm, 16, 4, seed=0) for arm in ("sequential", "parallel"))
    assert len(other.model.layers) == 1
    assert other.config.intermediate_size == 4 * one.config.intermediate_size
    wide = other.model.layers[0].mlp.down_proj.weight
    assert torch.equal(wide, torch.cat([block.mlp.down_proj.weight for block in one.model.layers], dim=1))
    assert torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_all_digits_are_there() -> None:
    x, y = claim._digits()
    assert x.shape == (1797, 1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert y.unique().tolist() == list(range(10))
