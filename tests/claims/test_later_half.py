from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layerwright.claims import later_half as claim
from layerwright.core.trials import Budget


@pytest.fixture
def small(monkeypatch) -> LlamaForCausalLM:
    """A four-block model in the place of the bundled one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 64, (24, 16))
    monkeypatch.setattr(claim, "demo", lambda length, tokens: (model, None, ids))
    return model


def test_the_experiment_at_a_tiny_size(small, monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"rows": 2, "length": 16})
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    # Here the model itself is untrained: it cannot differ from its own control.
    assert verdict.measured["inner_excess"]["met"] is not True


def test_effects_are_those_of_one_survey_over_all_the_text(small) -> None:
    ids = torch.randint(0, 64, (6, 16))
    both = claim._effects(claim._survey(small, ids, 0))
    table = claim._survey(small, ids, 0)["skip_effect"]
    future = table[table["quantity"] == "future"]
    assert both["max"] == pytest.approx([future[future["source"] == s]["max"].mean() for s in range(3)])
    pair = claim._effects(claim._survey(small, ids[:3], 0), claim._survey(small, ids[:3], 0))
    assert pair["max"] == pytest.approx(claim._effects(claim._survey(small, ids[:3], 0))["max"])


def test_the_gap_compares_halves() -> None:
    effect = np.array([8.0, 2.0, 2.0, 1.0, 1.0])  # six blocks: the last has no later one
    assert claim._gap(effect) == pytest.approx(np.log(4.0))
    assert claim._gap(effect, first=1) == pytest.approx(np.log(2.0))


def test_there_is_text_for_every_seed() -> None:
    _, _, windows = claim.demo(96, 1_000_000)
    assert len(windows) > 12 * 3 * claim.SIZES["small"]["rows"]
