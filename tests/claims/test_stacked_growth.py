from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import byte_models
from layerwright.claims import stacked_growth as claim
from layerwright.core.trials import Budget


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    size = {"width": 16, "depth": 4, "times": 2, "steps": 4, "rows": 2, "length": 12}
    monkeypatch.setitem(claim.SIZES, "small", size)
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(byte_models, "text", lambda: (ids, ids))
    monkeypatch.setattr(claim, "text", lambda: (ids, ids))
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["scratch"] == pytest.approx(np.log(256), rel=0.15)
    # Steps are whole: what is left of the last one is not spent.
    assert 1 - 1 / 4 < values["cost"] <= 1
    assert 0.2 < verdict.conditions["small_models_share_of_flops"] < 0.35  # half the steps at half the depth


def test_block_l_of_the_stack_is_block_l_modulo_the_small_depth() -> None:
    small = byte_models.llama(16, 2, 12, seed=0)
    grown = claim.stack(small, 3)
    assert len(grown.model.layers) == 6
    for k, block in enumerate(grown.model.layers):
        for p, q in zip(block.parameters(), small.model.layers[k % 2].parameters(), strict=True):
            assert torch.equal(p, q)
            assert p is not q


def test_fresh_blocks_come_with_the_small_models_outside() -> None:
    small, other = byte_models.llama(16, 2, 12, seed=0), byte_models.llama(16, 4, 12, seed=1)
    before = other.model.layers[0].mlp.up_proj.weight.clone()
    claim.with_outside_of(small, other)
    assert torch.equal(other.model.embed_tokens.weight, small.model.embed_tokens.weight)
    assert torch.equal(other.lm_head.weight, small.lm_head.weight)
    assert torch.equal(other.model.layers[0].mlp.up_proj.weight, before)
