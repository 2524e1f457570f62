from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import byte_models
from layerwright.claims import curse_of_depth as claim
from layerwright.core.trials import Budget

TINY = {"width": 16, "depth": 4, "deeper": 6, "steps": 2, "rows": 2, "length": 12}


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (500,), generator=generator)
    monkeypatch.setattr(byte_models, "text", lambda: (ids, ids))
    monkeypatch.setattr(claim, "text", lambda: (ids, ids))
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.measured["start_cut"]["value"] > 0
    assert verdict.measured["swell"]["value"] < 0.5
    assert abs(verdict.measured["post_growth"]["value"]) < 0.05
    assert verdict.conditions["held_out_loss_nat_per_byte"]["pre"] == pytest.approx(np.log(256), rel=0.15)


def test_arms_differ_in_their_normalisation_only() -> None:
    pre, scaled, post = (claim.tower(arm, 16, 4, 12, seed=0) for arm in claim.ARMS)
    weights = [[p.detach() for p in model.parameters()] for model in (pre, scaled, post)]
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))
    x = torch.randn(1, 3, 16)
    for k, (plain, less) in enumerate(zip(pre.model.layers, scaled.model.layers, strict=True)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            torch.testing.assert_close(getattr(less, name)(x), getattr(plain, name)(x) / (k + 1) ** 0.5)
    torch.testing.assert_close(scaled.model.norm(x), pre.model.norm(x))  # the final norm is not scaled


def test_the_post_norm_block_keeps_the_stream_at_one_size() -> None:
    with torch.no_grad():
        model = claim.tower("post", 16, 4, 12, seed=0).eval()
        states = []
        for block in model.model.layers:
            block.register_forward_hook(lambda m, a, out: states.append(out))
        model(input_ids=torch.arange(12)[None])
    for state in states:
        torch.testing.assert_close(state.square().mean(-1), torch.ones(1, 12), rtol=1e-3, atol=1e-3)


def test_growth_and_correlation_on_numbers_made_by_hand() -> None:
    sigma = np.array([0.1, 1.0, 2.0, 4.0, 8.0])
    distance = np.array([9.0, 4.0, 2.0, 1.0])  # one a block
    assert claim._growth(sigma) == pytest.approx(np.log(8))
    assert claim._correlation(sigma, distance) == pytest.approx(-1)
    assert claim._correlation(sigma, distance[::-1]) == pytest.approx(1)
    assert claim._bend(sigma) == pytest.approx(2)  # two doublings above the middle, one below it
    assert claim._fall(distance) == pytest.approx(1.5 / 4)
    assert claim._chance(sigma, distance, seed=0) == pytest.approx(1 / 6, abs=0.1)
