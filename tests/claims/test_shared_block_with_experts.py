from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from layerwright.claims import byte_models
from layerwright.claims import shared_block_with_experts as claim
from layerwright.core.trials import Budget


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"width": 16, "depth": 3, "steps": 3, "rows": 2, "length": 12})
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(byte_models, "text", lambda: (ids, ids))
    monkeypatch.setattr(claim, "text", lambda: (ids, ids))
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["shared"] == pytest.approx(np.log(256), rel=0.15)
    assert 0.5 <= values["most_used"] <= 1  # two of four are taken
    assert values["flops"] > 1


def test_experts_are_the_weighted_sum_of_those_the_router_takes() -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    visit = claim.Visit(claim.Experts(part, 3, 2, 0.5))
    x = torch.randn(2, 5, 4)
    found = visit(x)
    for b, t in np.ndindex(2, 5):
        p = visit.inner.router(x[b, t]).softmax(-1)
        two = p.argsort(descending=True)[:2]
        torch.testing.assert_close(found[b, t], sum(p[e] * visit.inner.experts[e](x[b, t]) for e in two))
    assert visit.used.sum().item() == pytest.approx(2)


def test_the_penalty_is_one_where_all_experts_are_used_alike() -> None:
    visit = claim.Visit(claim.Experts(nn.Linear(4, 4, bias=False), 4, 2, 0.5))
    visit.keep(torch.full((4, 4), 0.25), torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]))
    assert visit.penalty.item() == pytest.approx(1)
    visit.keep(torch.tensor([[0.5, 0.5, 0, 0]] * 4), torch.tensor([[0, 1]] * 4))
    assert visit.penalty.item() == pytest.approx(2)


def test_one_block_serves_all_depths_but_for_its_norms() -> None:
    for arm in ("shared", "experts"):
        model = claim.tower(arm, 16, 3, 12, seed=0)
        byte_models.fit(model, torch.arange(300) % 7, 2, 2, 12, torch.Generator().manual_seed(0), claim.balance)
        first, last = model.model.layers[0], model.model.layers[2]
        assert first.self_attn.q_proj.weight is last.self_attn.q_proj.weight
        assert not torch.equal(first.input_layernorm.weight, last.input_layernorm.weight)
    assert first.mlp.inner is last.mlp.inner


def test_the_penalty_reaches_the_router() -> None:
    model = claim.tower("experts", 16, 2, 12, seed=0)
    byte_models.loss_of(model, torch.zeros(1, 12, dtype=torch.long)).backward()
    before = model.model.layers[0].mlp.inner.router.weight.grad.clone()
    model.zero_grad()
    (byte_models.loss_of(model, torch.zeros(1, 12, dtype=torch.long)) + claim.balance(model)).backward()
    assert not torch.equal(model.model.layers[0].mlp.inner.router.weight.grad, before)
    assert claim.balance(claim.tower("shared", 16, 2, 12, seed=0)) == 0
