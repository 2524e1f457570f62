from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import forward, splits, stream, tables, without
from zoo import gpt2, token_ids

from layerwright.core.table import Field
from layerwright.measures.depth_score import depth_score


def fields(later: np.ndarray, output: np.ndarray) -> tuple[Field, Field]:
    depth = len(output)
    pairs = [(s, k) for s in range(depth) for k in range(s + 1, depth)]
    effect = np.array([later[s, k] for s, k in pairs])
    keys = [(s, k, "later") for s, k in pairs]
    shift = [(s, "probability_shift") for s in range(depth)]
    nothing = np.full(depth, np.nan)  # only the maximum may be read
    return (
        Field(("source", "block", "quantity"), keys, np.full(len(keys), np.nan), effect),
        Field(("source", "quantity"), shift, nothing, output),
    )


def test_hand_values() -> None:
    """All the effect in block 2 (counted from 1) of 4, then spread evenly: the score is 2, then the mean of 1 … L."""
    one = np.zeros((4, 4))
    one[1] = 1.0
    assert depth_score(*fields(one, np.array([0.0, 1, 0, 0]))) == pytest.approx({"later": 2.0, "output": 2.0})
    even = depth_score(*fields(np.ones((4, 4)), np.ones(4)))
    assert even == pytest.approx({"later": 2.0, "output": 2.5})  # the last block has no later one


def test_as_the_paper_does_it() -> None:
    """d = Σ l e_l / Σ e_l with e_l the mean over later blocks of the largest effect over tokens, from full runs."""
    depth, ids = 4, token_ids(5, 16)
    model = gpt2(num_hidden_layers=depth).double()
    found = tables(model, {"input_ids": ids}, "depth_score")["depth_score"].set_index("quantity")["value"]
    h, _, _ = stream(model, ids)
    base = forward(model, ids).softmax(-1)
    for kind, until in (("later", None), ("future", splits(5, 16))):
        effects = []
        for s in range(depth - 1):
            skipped, _ = without(model, s, ids, until)
            seen = (torch.arange(16) >= (0 if until is None else until[:, None])).expand(5, 16)
            largest = []
            for k in range(s + 1, depth):
                c, other = h[k + 1] - h[k], skipped[k + 1] - skipped[k]
                largest.append(float(((c - other).norm(dim=-1) / c.norm(dim=-1))[seen].max()))
            effects.append(sum(largest) / len(largest))
        score = sum((k + 1) * e for k, e in enumerate(effects)) / sum(effects)
        assert found[kind] == pytest.approx(score, rel=1e-5)
    shifts = [float((without(model, s, ids)[1].softmax(-1) - base).norm(dim=-1).max()) for s in range(depth)]
    assert found["output"] == pytest.approx(sum((k + 1) * e for k, e in enumerate(shifts)) / sum(shifts), rel=1e-5)


def test_a_common_factor_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    later, output = rng.uniform(size=(5, 5)), rng.uniform(size=5)
    assert depth_score(*fields(7 * later, 7 * output)) == pytest.approx(depth_score(*fields(later, output)))


def test_blocks_without_effect_have_no_centre() -> None:
    assert all(np.isnan(x) for x in depth_score(*fields(np.zeros((3, 3)), np.zeros(3))).values())


def test_an_undefined_effect_leaves_the_output_score_undefined() -> None:
    found = depth_score(*fields(np.ones((3, 3)), np.array([1.0, np.nan, 1.0])))
    assert np.isnan(found["output"])
    assert found["later"] == pytest.approx(4 / 3 + 1 / 6)
