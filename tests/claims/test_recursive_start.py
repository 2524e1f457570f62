from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layerwright.claims import recursive_start as claim
from layerwright.core.trials import Budget

TINY = {"unique": 2, "ranks": [0, 4, 8, 16], "low": 4, "high": 8, "windows": 3, "length": 12, "steps": 2, "rows": 2}


@pytest.fixture
def small(monkeypatch) -> LlamaForCausalLM:
    """A four-block model in the place of the bundled one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    text = torch.randint(0, 64, (24, 12))
    monkeypatch.setattr(claim, "demo", lambda length: (model, None, text))
    monkeypatch.setattr(claim, "practice_text", lambda length: text.flip(0))
    claim.recursive.cache_clear()
    yield model
    claim.recursive.cache_clear()


def test_the_experiment_at_a_tiny_size(small, monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(v) for v in values.values())
    assert values["difference"] == 0
    assert values["error_rise"] < 0
    assert verdict.conditions["loss_untrained_nat_per_token"]["lower"]["16"] == pytest.approx(values["whole"], abs=1e-3)


@pytest.mark.parametrize("start", claim.STARTS)
@pytest.mark.parametrize("rank", [0, 4])
def test_corrections_as_parameters_start_where_the_step_does(small, start, rank) -> None:
    ids = torch.randint(0, 64, (2, 12))
    apart = claim.relaxed(small, start, 2, rank, seed=0)
    torch.testing.assert_close(apart(input_ids=ids).logits, claim.recursive(start, 2, rank, 12)(input_ids=ids).logits)


def test_loops_stay_one_weight_while_they_are_trained(small) -> None:
    before = claim.relaxed(small, "average", 2, 4, seed=0)
    start = before.model.layers[0].mlp.up_proj.shared.weight.detach().clone()
    layers = claim.trained_on(before, torch.randint(0, 64, (4, 12)), 2).model.layers
    assert layers[0].mlp.up_proj.shared.weight is layers[2].mlp.up_proj.shared.weight
    assert not torch.equal(layers[0].mlp.up_proj.outer, layers[2].mlp.up_proj.outer)
    assert not torch.equal(layers[0].mlp.up_proj.shared.weight, start)


def test_random_blocks_have_nothing_of_the_model_but_its_vectors(small) -> None:
    made = claim.relaxed(small, "random", 2, 0, seed=1)
    own = {name: p for name, p in small.named_parameters() if ".layers." in name}
    for name, p in made.named_parameters():
        if name in own:
            assert torch.equal(p, own[name]) == (p.ndim == 1)


def test_the_error_is_that_of_all_matrices_of_the_blocks(small) -> None:
    other = claim.recursive("lower", 2, 0, 12)
    pairs = [
        (p, q) for (n, p), q in zip(small.named_parameters(), other.parameters()) if ".layers." in n and p.ndim > 1
    ]
    own, its = (torch.cat([x.detach().flatten() for x in xs]) for xs in zip(*pairs))
    assert claim.error(small, other) == pytest.approx((torch.dist(own, its) / own.norm()).item(), rel=1e-5)
