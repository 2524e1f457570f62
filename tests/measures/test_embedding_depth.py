from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import stream
from scipy.spatial.distance import cosine as distance
from scipy.stats import ranksums
from torch import Tensor
from zoo import llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.measures.embedding_depth import embedding_depth


def test_hand_values() -> None:
    """Two at right angles and two at 45° between them, of any length."""
    f = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 3.0]]])
    found = embedding_depth(f, f)
    outer, inner = 1 + 2**0.5 / 3, 1 + (1 + 2**0.5) / 3
    assert found[0, "median"] == pytest.approx((outer + inner) / 2)
    assert found[0, "spread"] == pytest.approx(inner - outer)
    assert set(found) == {(0, "median"), (0, "spread")}  # nothing beside itself to compare


def depths(f: Tensor, g: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of both corpora in the first, by the loop over pairs: the first without itself."""
    f, g = f.double().numpy(), g.double().numpy()
    own = [2 - sum(distance(x, y) for j, y in enumerate(f) if j != i) / (len(f) - 1) for i, x in enumerate(f)]
    return np.array(own), np.array([2 - sum(distance(x, y) for y in f) / len(f) for x in g])


@pytest.mark.parametrize("size", [12, 9], ids=["as many", "fewer"])
def test_last_tokens_of_two_corpora_by_the_loop_over_pairs(size: int) -> None:
    model, ids, other = llama(), token_ids(12, 8), token_ids(size, 7, seed=3)
    survey = lw.survey(model, {"input_ids": ids}, only=["embedding_depth"], against_data={"input_ids": other})
    values = survey["embedding_depth"].set_index(["point", "quantity"])["value"]
    for point, (x, y) in enumerate(zip(stream(model, ids)[0], stream(model, other)[0])):
        f, g = depths(x[:, -1], y[:, -1])
        test = ranksums(f, g, alternative="greater")
        assert values[point, "median"] == pytest.approx(np.median(f), abs=1e-5)
        assert values[point, "spread"] == pytest.approx(np.subtract(*np.quantile(f, [0.75, 0.25])), abs=1e-5)
        assert values[point, "other_median"] == pytest.approx(np.median(g), abs=1e-5)
        assert values[point, "other_below"] == pytest.approx(np.mean([(f < x).mean() for x in g]), abs=1e-5)
        assert values[point, "rank_sum"] == pytest.approx(test.statistic, abs=1e-5)
        assert values[point, "p_value"] == pytest.approx(test.pvalue, abs=1e-5)


def test_a_corpus_that_lies_elsewhere_is_found_and_one_alike_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([2.0, 0, 0, 0, 0])
    f, alike = (centre + torch.randn(1, 200, 5, generator=generator) for _ in range(2))
    elsewhere = centre.roll(1) + torch.randn(1, 200, 5, generator=generator)
    same, moved = embedding_depth(f, alike), embedding_depth(f, elsewhere)
    assert 0.4 < same[0, "other_below"] < 0.6
    assert same[0, "p_value"] > 0.01
    assert moved[0, "other_below"] < 0.1
    assert moved[0, "p_value"] < 1e-10


def test_models_of_another_width_or_depth_are_not_compared() -> None:
    f = torch.randn(2, 5, 4)
    assert {name for _, name in embedding_depth(f, torch.randn(2, 5, 3))} == {"median", "spread"}
    assert {name for _, name in embedding_depth(f, torch.randn(3, 5, 4))} == {"median", "spread"}


def test_one_sequence_has_nothing_to_lie_among() -> None:
    with pytest.raises(UserError, match="got 1 sequence"):
        embedding_depth(torch.randn(2, 1, 4), torch.randn(2, 5, 4))


def test_states_alike_or_not_finite_are_defined() -> None:
    f = torch.ones(2, 4, 3)
    f[1, 2, 0] = torch.nan
    found = embedding_depth(f, 2 * f)
    assert found[0, "median"] == pytest.approx(2.0)
    assert found[0, "other_median"] == pytest.approx(2.0)
    assert all(torch.tensor(found[1, name]).isnan() for name in ("median", "other_median", "p_value"))
