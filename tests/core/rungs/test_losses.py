"""Loss by document, and the ratio of two models' losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive import forward, loss
from torch import nn
from zoo import ZOO, gpt2, llama, token_ids

from layerwright.core.errors import UserError
from layerwright.core.quiet import undisturbed
from layerwright.core.rungs import losses as module
from layerwright.core.rungs.losses import Losses, losses, ratio
from layerwright.core.stack import Stack


def measured(model: nn.Module, documents: list[Any], **options: Any) -> Losses:
    stack = Stack.find(model, documents[0])
    with undisturbed(model), torch.no_grad():
        return losses(stack, documents, **options)


def test_each_document_has_the_loss_of_a_plain_call() -> None:
    model, ids = gpt2(), token_ids(5)
    found = measured(model, [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}])
    for d in range(5):
        expected = loss(forward(model, ids[d : d + 1]), ids[d : d + 1])
        assert found.total[d] / found.tokens[d] == pytest.approx(float(expected), rel=1e-5)
    assert found.tokens.tolist() == [11] * 5
    assert found.mean == pytest.approx(float(loss(forward(model, ids), ids)), rel=1e-5)


def test_portions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents = llama(), [{"input_ids": token_ids(7)}]
    whole = measured(model, documents)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 2 * 12 * 40)
    pieces = measured(model, documents)
    assert pieces.total == pytest.approx(whole.total, rel=1e-6)


def test_padding_and_the_prefix_do_not_count() -> None:
    model, ids = llama(), token_ids(2)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    found = measured(model, [{"input_ids": ids, "attention_mask": mask}])
    assert found.tokens.tolist() == [11, 6]
    alone = measured(model, [{"input_ids": ids[1:, :7]}])
    assert found.total[1] == pytest.approx(alone.total[0], rel=1e-5)
    assert measured(model, [{"input_ids": ids}], prefix=4).tokens.tolist() == [7, 7]


def test_labels_of_images() -> None:
    model, inputs, _ = ZOO["vit"]()
    labels = torch.tensor([0, 1, 1])
    found = measured(model.eval(), [inputs | {"labels": labels}])
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(**inputs).logits, labels)
    assert found.mean == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(UserError, match="is given no labels to predict, so that it has no loss"):
        measured(model, [inputs])


def test_data_without_a_token_to_predict_is_refused() -> None:
    with pytest.raises(UserError, match="the data is empty"):
        losses(Stack.find(llama(), {"input_ids": token_ids()}), [])
    with pytest.raises(UserError, match="no document has a token to be predicted"):
        measured(llama(), [{"input_ids": token_ids(2)}], prefix=12)


def drawn(seed: int) -> tuple[Losses, Losses]:
    """Documents that are unequally hard, and a second model that is 5 % worse but for a little noise."""
    generator = np.random.default_rng(seed)
    before = generator.uniform(50, 150, 40)
    after = before * (1.05 + 0.01 * generator.standard_normal(40))
    return tuple(Losses(x, np.full(40, 30)) for x in (before, after))  # type: ignore[return-value]


def test_the_interval_is_paired() -> None:
    """It is as narrow as the noise between the models, not as wide as the spread of the documents."""
    value, low, high = ratio(*drawn(0), seed=0)
    assert low < value < high
    assert value == pytest.approx(1.05, abs=0.006)
    assert high - low < 0.01


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = sum(low <= 1.05 <= high for _, low, high in (ratio(*drawn(seed), seed=seed) for seed in range(200)))
    # 95 % of 200 is 190, its standard deviation 3; a bootstrap of 40 documents covers a little less.
    assert 178 <= covered <= 200


def test_the_same_seed_draws_the_same() -> None:
    before, after = drawn(1)
    assert ratio(before, after, 3) == ratio(before, after, 3)
    assert ratio(before, after, 3) != ratio(before, after, 4)
    value, low, high = ratio(Losses(before.total[:1], before.tokens[:1]), Losses(after.total[:1], after.tokens[:1]), 0)
    assert value == after.total[0] / before.total[0]
    assert np.isnan([low, high]).all()
