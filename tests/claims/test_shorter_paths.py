from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layerwright.claims import shorter_paths as claim
from layerwright.core.trials import Budget


@pytest.fixture
def small(monkeypatch) -> LlamaForCausalLM:
    """A four-block model in the place of the bundled one, on text of which it gets about half right."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 8, (24, 8))
    with torch.no_grad():
        ids[::2, -1] = model(input_ids=ids).logits[::2, -2].argmax(-1)
    monkeypatch.setattr(claim, "demo", lambda length: (model, None, ids))
    return model


def test_the_experiment_at_a_tiny_size(small, monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"samples": 12, "paths": 6, "length": 8, "carried": 2})
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert set(values) == {e.number for e in claim.EXPECTED}
    assert values["tried_beyond"] == 0
    assert 0 < values["right"] < 1
    for share in ("shorter", "random_shorter", "repaired", "carried"):
        assert 0 <= values[share] <= 1
    assert values["saved"] >= values["saved_beyond"]
    assert verdict.conditions["right_samples"] > 0
    assert verdict.figure is not None
    assert verdict.figure.startswith("<svg")


def test_only_the_last_token_is_asked_for(small) -> None:
    ids = torch.tensor([[3, 4, 5], [6, 7, 1]])
    assert claim._last_only(ids).tolist() == [[-100, -100, 5], [-100, -100, 1]]
    logits = small(input_ids=ids).logits
    assert claim._is_right(small, ids).tolist() == (logits[:, 1].argmax(-1) == ids[:, 2]).tolist()


def test_a_path_counts_as_shorter_only_where_it_is_right() -> None:
    full = pd.DataFrame({"length": [4, 4, 4]})
    rows = pd.DataFrame({"length": [3, 4, 2], "right": [1.0, 1.0, 0.0]})
    assert claim._shorter(rows, full) == pytest.approx(1 / 3)


def test_the_whole_path_keeps_every_right_sample(small) -> None:
    rows = pd.DataFrame({"path": ["0 1 2 3", "0 1 2 3"]})
    assert claim._carried(small, rows, torch.randint(0, 8, (40, 8)), 2) == 1
    assert np.isnan(claim._carried(small, rows[:0], torch.randint(0, 8, (40, 8)), 2))
