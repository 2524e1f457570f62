from __future__ import annotations

import pytest
import torch
from naive import stream, tables
from torch import Tensor
from zoo import ZOO, llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.measures.head_collapse import head_collapse
from layerwright.measures.neural_collapse import neural_collapse


def given(classes: int = 5, width: int = 7, each: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes + 3, width, generator=generator)
    labels = 2 + torch.randint(0, classes, (classes * each,), generator=generator)
    return weight[labels] + torch.randn(len(labels), width, generator=generator), weight, labels


def test_it_is_neural_collapse_of_what_the_head_reads() -> None:
    x, weight, labels = given()
    found = head_collapse(x, weight, labels)
    expected = neural_collapse(x[None], labels, x[None, :1], torch.tensor([-100]))
    assert {key: found[key[1],] for key in expected} == pytest.approx(expected)


def test_rows_of_the_head_stand_beside_the_means_of_their_class() -> None:
    """Classes are met in no order, more of them than are added at a time."""
    x, weight, labels = given()
    found = head_collapse(x, weight, labels)
    means = torch.stack([x[labels == c].mean(0) for c in range(2, 7)])
    cosine = torch.cosine_similarity(means - means.mean(0), weight[2:7])
    assert found["alignment",] == pytest.approx(float(cosine.mean()), rel=1e-5)
    assert found["alignment_variance",] == pytest.approx(float(cosine.var(correction=0)), rel=1e-4)
    nearest = torch.cdist(x, means).argmin(1)  # a sample moves the mean of 300 too little to matter much
    agreed = ((x @ weight[2:7].T).argmax(1) == nearest).float().mean()
    assert found["agreement",] == pytest.approx(float(agreed), abs=0.01)


def test_a_collapsed_simplex_with_its_own_classifier() -> None:
    corners = torch.eye(4) - 0.25
    labels = torch.arange(4).repeat(3)
    found = head_collapse(corners[labels], 3 * corners, labels)
    ones = {"alignment", "agreement"}
    for name in ("nc1", "variance_ratio", "cdnv", "etf_error", "self_duality", "alignment_variance", *ones):
        assert found[name,] == pytest.approx(float(name in ones), abs=1e-6)


def test_what_cannot_be_measured() -> None:
    x, weight, labels = given()
    with pytest.raises(UserError, match="got label 6; expected one of the head's 5 classes"):
        head_collapse(x, weight[:5], labels)
    with pytest.raises(UserError, match="at the head got class means that are all the same"):
        head_collapse(torch.ones_like(x), weight, labels)
    with pytest.raises(UserError, match="not finite"):
        head_collapse(x / 0, weight, labels)


def test_of_a_language_model() -> None:
    model, ids = llama(), token_ids(4, 24)
    frame = tables(model, {"input_ids": ids}, "head_collapse")["head_collapse"]
    found = dict(zip(frame["quantity"], frame["value"]))
    h, _, _ = stream(model, ids)
    with torch.no_grad():
        read, weight = model.model.norm(h[-1])[:, :-1].flatten(0, 1), model.lm_head.weight.detach()
    expected = head_collapse(read, weight, ids[:, 1:].flatten())
    assert found == pytest.approx({name: value for (name,), value in expected.items()}, rel=1e-3, abs=1e-5)


def test_a_model_without_a_head_says_so() -> None:
    model, inputs, expected = ZOO["t5 encoder"]()
    survey = lw.survey(model, inputs, only=["head_collapse", "block_influence"], blocks=expected.blocks)
    assert any("head_collapse could not be measured: this model supplies no head_inputs" in x for x in survey.notes)
