"""The loss on held-out documents, and the interval of its change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from zoo import gpt2

from layerwright.trainers import held_out
from layerwright.trainers.corpus import Corpus
from layerwright.trainers.held_out import compare, held_out_sums, mean_loss
from layerwright.trainers.objective import Objective


def corpus() -> Corpus:
    draw = torch.Generator().manual_seed(0)
    samples = [{"input_ids": torch.randint(0, 40, (n,), generator=draw)} for n in (9, 9, 5, 9, 7)]
    return Corpus(samples[:1], samples, [0, 0, 1, 2, 2], "test", ())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_sums_are_those_of_each_document_alone(batch: int) -> None:
    model = gpt2().train()
    found = held_out_sums(model, Objective("next token", 40), corpus(), batch)
    assert model.training
    expected = np.zeros((2, 3))
    model.eval()
    for sample, document in zip(corpus().held_out, corpus().documents):
        ids = sample["input_ids"][None]
        with torch.no_grad():
            mean = float(model(ids, labels=ids).loss)
        expected[:, document] += mean * (ids.shape[1] - 1), ids.shape[1] - 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert mean_loss(found) == pytest.approx(expected[0].sum() / expected[1].sum(), rel=1e-5)


def test_the_interval_is_that_of_documents_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "REPLICATES", 4000)
    draw = np.random.default_rng(1)
    tokens = draw.integers(50, 500, 20).astype(float)
    before = np.stack([tokens * draw.normal(3, 0.5, 20), tokens])
    after = before - np.stack([tokens * draw.normal(0.2, 0.1, 20), 0 * tokens])
    found = compare(before, after)
    naive = []
    for _ in range(4000):
        chosen = draw.integers(0, 20, 20)
        naive.append(mean_loss(after[:, chosen]) - mean_loss(before[:, chosen]))
    assert found.change == pytest.approx(mean_loss(after) - mean_loss(before))
    assert [found.low, found.high] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.01)
    # Paired: documents differ far more from each other than by what changed.
    assert found.high - found.low < 0.2
    assert found.low < found.change < found.high < 0


def test_one_document_has_no_interval() -> None:
    sums = np.array([[4.0], [2.0]])
    found = compare(sums, sums)
    assert (found.before, found.after, found.change) == (2.0, 2.0, 0.0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
