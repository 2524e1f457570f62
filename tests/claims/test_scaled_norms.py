from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import byte_models
from layerwright.claims import scaled_norms as claim
from layerwright.core.trials import Budget


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"width": 16, "depth": 4, "steps": 4, "rows": 2, "length": 12})
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(byte_models, "text", lambda: (ids, ids))
    monkeypatch.setattr(claim, "text", lambda: (ids, ids))
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert verdict.measured["start"]["met"] is True
    assert values["pre"] == pytest.approx(np.log(256), rel=0.15)


def test_arms_differ_in_what_their_norms_give_only() -> None:
    towers = {arm: claim.tower(arm, 16, 4, 12, seed=0) for arm in claim.ARMS}
    x = torch.randn(1, 3, 16)
    for k in range(4):
        blocks = {arm: model.model.layers[k] for arm, model in towers.items()}
        plain = blocks["pre"].input_layernorm(x)
        torch.testing.assert_close(blocks["scaled"].input_layernorm(x), plain / (k + 1) ** 0.5)
        torch.testing.assert_close(blocks["folded"].input_layernorm(x), plain / (k + 1) ** 0.5)
        torch.testing.assert_close(blocks["flat"].post_attention_layernorm(x), plain * (25 / 48) ** 0.5)
        for block in blocks.values():
            assert torch.equal(block.mlp.up_proj.weight, blocks["pre"].mlp.up_proj.weight)
    norms = [model.model.norm(x) for model in towers.values()]
    assert all(torch.equal(norms[0], other) for other in norms[1:])


def test_the_factor_stays_what_it_is_while_the_model_is_trained() -> None:
    model = claim.tower("scaled", 16, 2, 12, seed=0)
    byte_models.fit(model, torch.arange(200) % 7, 2, 2, 12, torch.Generator().manual_seed(0))
    assert model.model.layers[1].input_layernorm.factor == pytest.approx(0.5**0.5)
