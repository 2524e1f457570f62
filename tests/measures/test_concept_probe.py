from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import stream
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from zoo import llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.core.table import Estimate
from layerwright.maths.probes import frequent_half
from layerwright.maths.ridge import PENALTIES, split_sequences
from layerwright.measures.concept_probe import concept_probe

Found = dict[tuple[int, str, str, str], float | Estimate]


def probe(states: Tensor, labels: Tensor, **options: Any) -> Found:
    """Of one state a sequence."""
    none = torch.full((states.shape[1],), -1)
    return concept_probe(states, torch.arange(states.shape[1]), 0 * none, none, none, states, labels, **options)


def number(found: Found, point: int, name: str, probe: str = "ridge", concept: str = "label") -> float:
    value = found[point, concept, probe, name]
    return value.value if isinstance(value, Estimate) else value


def two_classes(n: int = 300) -> Tensor:
    return torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(0))


def test_hand_values() -> None:
    """From nothing to the answer at the second of four points: accuracy from the share of the classes to 1."""
    labels = torch.tensor([0, 0, 1] * 20)
    known = torch.stack([labels, -labels], 1).float()
    found = probe(torch.stack([0 * known, 0 * known, known, known, 2 * known]), labels)
    held = labels[split_sequences(torch.arange(60)).held]
    for kind in ("ridge", "logistic"):
        curve = [number(found, point, "accuracy", kind) for point in range(5)]
        assert curve == [float((held == 0).double().mean())] * 2 + [1.0] * 3
        assert [number(found, point, "auc", kind) for point in range(5)] == [0.5, 0.5, 1.0, 1.0, 1.0]
        assert [key[0] for key in found if key[2:] == (kind, "jump")] == [2]
        assert number(found, 2, "jump", kind) == number(found, 2, "convergence", kind) == 0.5
    assert number(found, 4, "converged", "logistic") == 1.0


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_noise_has_no_selectivity(kind: str) -> None:
    """As many features as there are sequences to fit on: the probe names those it was fitted on, and no others."""
    points, held = 12, 120
    states = torch.randn(points, 300, 180, generator=torch.Generator().manual_seed(0))
    found = probe(states, two_classes())
    error = (2 * 0.25 / held) ** 0.5  # of one selectivity: two shares of held-out sequences
    values = [v for key, v in found.items() if key[2:] == (kind, "selectivity") and isinstance(v, Estimate)]
    assert len(values) == points
    assert abs(sum(value.value for value in values)) / points < 4 * error / points**0.5
    assert sum(value.low <= 0 <= value.high for value in values) >= points - 3
    assert max(abs(value.value) for value in values) < 4 * error
    assert max(abs(number(found, point, "auc", kind) - 0.5) for point in range(points)) < 0.25


def test_what_is_harder_is_read_off_later() -> None:
    """One direction that grows with depth for one concept, and from the middle on for the other."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(9, 400, 5, generator=generator)
    jumps = []
    for start in (1, 5):
        labels = torch.randint(0, 2, (400,), generator=generator)
        strength = torch.tensor([6.0 if point >= start else 0.0 for point in range(9)])
        states = noise + strength[:, None, None] * labels[:, None] * torch.eye(5)[0]
        found = probe(states, labels)
        jumps.append(next(float(v) for k, v in found.items() if k[2:] == ("ridge", "jump") and isinstance(v, float)))
        assert number(found, 8, "selectivity") > 0.35
        assert number(found, 0, "selectivity") < 0.15
    assert jumps == [1 / 8, 5 / 8]


def naive_curve(states: list[Tensor], labels: Tensor, sequences: Tensor) -> list[float]:
    """Accuracy at every point: a fit for every penalty, each held-out part by the best of the other."""
    split, curve = split_sequences(sequences), []
    for x in states:
        train, *held = (part.double() for part in split.divide(x))
        y, *answers = (part.double() for part in split.divide(nn.functional.one_hot(labels)))
        scale = float((train - train.mean(0)).square().sum() / min(train.shape))
        fits = [Ridge(p * scale, solver="svd").fit(train.numpy(), y.numpy()) for p in PENALTIES]
        guesses = [[torch.tensor(fit.predict(part.numpy())) for fit in fits] for part in held]
        errors = [[float((g - a).square().sum()) for g in gs] for gs, a in zip(guesses, answers)]
        best = [e.index(min(e)) for e in errors]
        chosen = torch.cat([guesses[0][best[1]], guesses[1][best[0]]]).argmax(1)
        curve.append(float((chosen == labels[split.held]).double().mean()))
    return curve


def test_made_labels_are_read_off_whole_states_at_every_token() -> None:
    """Not off the normalised state in the middle of a block, nor off last tokens alone, as in the published code."""
    model, ids = llama(), token_ids(12, 10)
    frame = lw.survey(model, {"input_ids": ids}, only=["concept_probe"])["concept_probe"]
    assert set(frame["concept"]) == {"late_position", "frequent_token", "frequent_next_token"}
    states = [h[:, :-1].flatten(0, 1) for h in stream(model, ids)[0]]  # the last token has nothing after it
    sequences = torch.arange(12).repeat_interleave(9)
    made = {
        "late_position": torch.arange(9).repeat(12) > 4,
        "frequent_token": frequent_half(ids[:, :-1].flatten()),
        "frequent_next_token": frequent_half(ids[:, 1:].flatten()),
    }
    for concept, labels in made.items():
        rows = frame[(frame.concept == concept) & (frame.probe == "ridge") & (frame.quantity == "accuracy")]
        assert rows["value"].to_list() == pytest.approx(naive_curve(states, labels.long(), sequences))
        assert (rows["low"] <= rows["value"]).all()
        assert (rows["high"] >= rows["value"]).all()


def test_labels_of_sequences_are_read_off_their_summaries() -> None:
    """Whether the last token is of the upper half of the vocabulary: the embedding knows."""
    model, ids = llama(), token_ids(60, 6)
    labels = (ids[:, -1] >= 20).long()
    frame = lw.survey(model, {"input_ids": ids, "labels": labels}, only=["concept_probe"])["concept_probe"]
    assert set(frame["concept"]) == {"label"}
    rows = frame[(frame.probe == "ridge") & (frame.quantity == "accuracy")]
    expected = naive_curve([h[:, -1] for h in stream(model, ids)[0]], labels, torch.arange(60))
    assert rows["value"].to_list() == pytest.approx(expected)


def test_rotations_and_scales_change_nothing_for_the_ridge() -> None:
    labels, generator = two_classes(90), torch.Generator().manual_seed(0)
    x = torch.randn(1, 90, 5, generator=generator) + labels[:, None] * torch.eye(5)[0]
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    still, turned = probe(x, labels), probe(4 * x @ turn + 3, labels)
    for name in ("accuracy", "auc", "selectivity"):
        assert number(turned, 0, name) == pytest.approx(number(still, 0, name))


def test_many_classes_are_left_to_the_ridge() -> None:
    labels = torch.arange(90) % 30
    found = probe(torch.randn(1, 90, 5), labels)
    assert {key[2] for key in found} == {"ridge"}


def test_a_probe_that_did_not_converge_says_so() -> None:
    labels = two_classes(90)
    x = labels[:, None] + torch.randn(1, 90, 20, generator=torch.Generator().manual_seed(0))
    found = probe(x, labels, iterations=2)
    assert number(found, 0, "iterations", "logistic") == 2
    assert number(found, 0, "converged", "logistic") == 0


def test_what_cannot_be_probed_says_why() -> None:
    x = torch.randn(2, 6, 3)
    with pytest.raises(UserError, match="got 5 labels for 6 sequences"):
        probe(x, torch.arange(5))
    with pytest.raises(UserError, match="1 classes"):
        probe(x, torch.ones(6).long())
    with pytest.raises(UserError, match="no labels"):
        probe(x, torch.full((6,), -100))
    with pytest.raises(UserError, match="got 2 sequences"):
        probe(x[:, :2], torch.arange(2))
    with pytest.raises(UserError, match="iterations=0"):
        probe(x, torch.arange(6), iterations=0)
    with pytest.raises(UserError, match="not finite"):
        probe(x.index_fill(1, torch.tensor(2), torch.inf), torch.arange(6) % 2)


def test_a_class_with_one_sample_is_defined() -> None:
    labels = torch.tensor([0, 1] * 10 + [2])
    x = torch.randn(2, 21, 3, generator=torch.Generator().manual_seed(0))
    found = probe(x, labels)
    assert all(0 <= number(found, point, "accuracy", kind) <= 1 for point in (0, 1) for kind in ("ridge", "logistic"))
