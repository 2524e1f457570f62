from __future__ import annotations

import pandas as pd
import pytest
import torch
from naive import stream, tables
from torch import Tensor
from zoo import ZOO, gpt2, llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.measures.neural_collapse import neural_collapse

NO_LABELS = torch.full((2,), -100)


def given(points: int = 3, count: int = 60, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (count,), generator=generator)
    states = torch.randn(points, count, width, generator=generator) + labels[:, None]
    return states, labels, states[:, :2]


def naive(x: Tensor, labels: Tensor, least: int = 2) -> dict[str, float]:
    """Tr Σ_W / Tr Σ_B and CDNV of the classes that are seen often enough, by loops."""
    x = x.double()
    groups = [x[labels == c] for c in labels[labels >= 0].unique() if (labels == c).sum() >= least]
    means = [g.mean(0) for g in groups]
    sigma = [float((g - g.mean(0)).square().sum(1).mean()) for g in groups]
    within = sum(s * len(g) for s, g in zip(sigma, groups)) / sum(map(len, groups))
    centre = torch.stack(means).mean(0)
    over = sum(float((m - centre).square().sum()) for m in means) / len(means)
    pairs = []
    for a in range(len(groups)):
        for b in range(a):
            distance = float((means[a] - means[b]).square().sum())
            if distance > 1e-12 * float(means[a].square().sum() + means[b].square().sum()):
                pairs.append((sigma[a] + sigma[b]) / (2 * distance))
    return {
        "variance_ratio": within / over,
        "cdnv": sum(pairs) / len(pairs),
        "classes": len(groups),
        "samples": sum(map(len, groups)),
    }


def rows(frame: pd.DataFrame, point: int) -> dict[str, float]:
    chosen = frame[frame["point"] == point]
    return dict(zip(chosen["quantity"], chosen["value"]))


def test_points_collapse_one_after_another() -> None:
    states, labels, summaries = given(1)
    means = torch.stack([states[0, labels == c].mean(0) for c in range(6)])[labels]
    towards = torch.stack([means + scale * (states[0] - means) for scale in (1.0, 0.5, 0.1, 0.0)])
    found = neural_collapse(towards, labels, summaries, NO_LABELS)
    for name in ("nc1", "variance_ratio", "cdnv"):
        expected = [found[0, name] * scale**2 for scale in (1.0, 0.5, 0.1, 0.0)]
        assert [found[k, name] for k in range(4)] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    for name in ("equinorm", "equiangularity", "etf_error", "uniformity"):
        assert [found[k, name] for k in range(4)] == pytest.approx([found[0, name]] * 4, rel=1e-4)


def test_rare_classes_take_no_part() -> None:
    states, labels, summaries = given()
    labels[:7] = torch.tensor([11, 12, 12, 13, 13, 13, -100])
    for least in (1, 2, 3):
        found = neural_collapse(states, labels, summaries, NO_LABELS, least=least)
        for point in range(3):
            expected = naive(states[point], labels, least)
            assert {name: found[point, name] for name in expected} == pytest.approx(expected)


def test_labels_of_sequences_come_before_the_next_token() -> None:
    states, labels, _ = given()
    found = neural_collapse(states[:, :5], torch.arange(5), states, labels)
    assert found == neural_collapse(states, labels, states[:, :2], NO_LABELS)


def test_a_point_at_which_all_are_alike_has_no_row() -> None:
    states, labels, summaries = given()
    states[0] = 3.0
    found = neural_collapse(states, labels, summaries, NO_LABELS)
    assert {point for point, _ in found} == {1, 2}


def test_what_nothing_can_be_said_of() -> None:
    states, labels, summaries = given()
    with pytest.raises(UserError, match="no labels"):
        neural_collapse(states, torch.full_like(labels, -100), summaries, NO_LABELS)
    with pytest.raises(UserError, match="1 of 1 classes have 2 states or more"):
        neural_collapse(states, torch.zeros_like(labels), summaries, NO_LABELS)
    states[1, 4, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 60 states at point 1 are not finite"):
        neural_collapse(states, labels, summaries, NO_LABELS)


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_next_tokens_of_a_language_model(make: object) -> None:
    model, ids = make(), token_ids(4, 24)  # type: ignore[operator]
    frame = tables(model, {"input_ids": ids}, "neural_collapse")["neural_collapse"]
    h, _, _ = stream(model, ids)
    for point, state in enumerate(h):
        expected = naive(state[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        found = rows(frame, point)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_batch_split_changes_nothing() -> None:
    ids = {"input_ids": token_ids(4, 24)}
    whole, split = (tables(llama(), ids, "neural_collapse", batch=b)["neural_collapse"] for b in (4, 1))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)


def test_labels_of_a_classifier() -> None:
    model, inputs, _ = ZOO["vit"]()
    images = inputs["pixel_values"].repeat(3, 1, 1, 1)
    images = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    data = {"pixel_values": images, "labels": torch.arange(len(images)) % 3}
    found = rows(lw.survey(model, data, only=["neural_collapse"])["neural_collapse"], 3)
    assert (found["classes"], found["samples"]) == (3, len(images))


def test_a_model_without_labels_says_so() -> None:
    model, inputs, _ = ZOO["vit"]()
    survey = lw.survey(model, inputs, only=["neural_collapse", "block_influence"])
    assert any("neural_collapse could not be measured: the data have no labels" in note for note in survey.notes)
