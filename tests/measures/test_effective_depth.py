from __future__ import annotations

import math

import numpy as np
import pytest
from naive import column, tables
from zoo import gpt2, token_ids

from layerwright.core.table import Field
from layerwright.measures.effective_depth import effective_depth


def depths(cosine: list[float], kl: list[float], overlap: list[float]) -> dict[str, float]:
    """`kl` and `overlap` at all L + 1 states."""
    n = len(cosine)
    a = Field(("block", "part"), [(k, "block") for k in range(n)], np.array(cosine), np.zeros(n))
    keys = [(p, q) for q in ("kl", "top5_overlap") for p in range(n + 1)]
    return effective_depth(a, Field(("point", "quantity"), keys, np.array(kl + overlap), np.zeros(len(keys))))


def test_hand_values() -> None:
    found = depths(
        [-0.3, -0.3, -0.3, 0.4, 0.4, 0.4],
        [8, 8, 6, 4.1, 3.9, 1, 0],
        [0, 0.1, 0.2, 0.21, 0.1, 0.9, 1],
    )
    assert found["cosine"] == 3  # means of three: −0.3, −0.3, −0.07, 0.17, 0.4, 0.4
    assert found["kl"] == 4  # the first below half of 8
    assert found["overlap"] == 3
    assert (found["cosine_ratio"], found["kl_ratio"], found["overlap_ratio"]) == (4 / 6, 5 / 6, 4 / 6)


def test_the_last_turn_counts() -> None:
    found = depths([-1, -1, 1, 1, -1, -1, 1, 1], [1] * 9, [0] * 9)
    assert found["cosine"] == 6
    assert found["cosine_ratio"] == 7 / 8


def naive(cosine: np.ndarray, kl: np.ndarray, overlap: np.ndarray) -> dict[str, float]:
    """The three thresholds by loops over blocks."""
    depth = len(cosine)
    smooth = [np.mean(cosine[max(0, k - 1) : k + 2]) for k in range(depth)]
    turns = [k for k in range(1, depth) if smooth[k - 1] < 0 < smooth[k]]
    low = [k for k in range(depth) if kl[k] < 0.5 * max(kl[:depth])]
    high = [k for k in range(depth) if overlap[k] > 0.2]
    return {
        "cosine": turns[-1] if turns else math.nan,
        "kl": low[0] if low else math.nan,
        "overlap": high[0] if high else math.nan,
    }


def test_by_loops_on_random_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        depth = int(rng.integers(2, 12))
        cosine, kl, overlap = rng.normal(size=depth), rng.exponential(size=depth + 1), rng.uniform(0, 0.4, depth + 1)
        found = depths(list(cosine), list(kl), list(overlap))
        expected = naive(cosine, kl, overlap)
        expected |= {f"{name}_ratio": (k + 1) / depth for name, k in expected.items()}
        assert found == pytest.approx(expected, nan_ok=True)


def test_by_loops_on_a_model() -> None:
    frames = tables(gpt2(num_hidden_layers=6), {"input_ids": token_ids()}, "effective_depth")
    cosine = column(frames["residual_cosine"], part="block").numpy()
    kl, overlap = (column(frames["logit_lens"], quantity=q).numpy() for q in ("kl", "top5_overlap"))
    found = frames["effective_depth"].set_index("quantity")["value"]
    for name, expected in naive(cosine, kl, overlap).items():
        assert found[name] == pytest.approx(expected, nan_ok=True)


def test_the_unit_of_kl_does_not_matter() -> None:
    cosine, kl, overlap = [-1, -1, 1, 1], [5, 4, 2, 1, 0], [0, 0.1, 0.3, 0.5, 1]
    assert depths(cosine, kl, overlap) == depths(cosine, [x / math.log(2) for x in kl], overlap)


def test_a_threshold_that_is_never_crossed_is_absent() -> None:
    found = depths([1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1])
    assert all(math.isnan(x) for x in found.values())
    assert all(math.isnan(x) for x in depths([math.nan] * 3, [math.nan] * 4, [math.nan] * 4).values())
