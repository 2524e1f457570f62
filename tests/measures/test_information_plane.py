from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from naive import stream, tables
from torch import Tensor
from zoo import gpt2, llama, token_ids

from layerwright.core.errors import UserError
from layerwright.maths.information import binned_information, kernel_information
from layerwright.measures.information_plane import information_plane

NO_LABELS = torch.full((2,), -100)


def given(points: int = 2, count: int = 40, width: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (count,), generator=generator)
    states = torch.randn(points, count, width, generator=generator) + labels[:, None]
    return states, labels, states[:, :2]


def test_from_all_to_the_label_to_nothing() -> None:
    labels = torch.arange(16) % 4
    states = torch.stack([torch.arange(16.0) * 100, labels * 100.0, torch.full((16,), 3.0)])[..., None]
    found = information_plane(states, labels, states[:, :2], NO_LABELS, noise=1e-6)
    for way in ("binned", "kernel"):
        plane = [(found[k, f"{way}_input"], found[k, f"{way}_label"]) for k in range(3)]
        assert [x for pair in plane for x in pair] == pytest.approx([4, 2, 2, 2, 0, 0], abs=1e-9)
        assert [found[k, f"{way}_distinct"] for k in range(3)] == [1, 0, 0]
    assert {found[k, "input_ceiling"] for k in range(3)} == {4.0}
    assert {found[k, "label_ceiling"] for k in range(3)} == {2.0}


def test_wide_states_are_at_the_ceiling_and_flagged() -> None:
    generator = torch.Generator().manual_seed(0)
    states, labels = torch.randn(1, 64, 300, generator=generator), torch.arange(64) % 3
    found = information_plane(states, labels, states, NO_LABELS)
    assert found[0, "binned_distinct"] == 1
    assert found[0, "binned_input"] == pytest.approx(found[0, "input_ceiling"]) == 6
    assert found[0, "binned_label"] == pytest.approx(found[0, "label_ceiling"])


def test_the_variance_of_the_noise_is_a_share_of_the_spread() -> None:
    states, labels, summaries = given()
    found = information_plane(states, labels, summaries, NO_LABELS, noise=0.2)
    x = states[1].double()
    sigma = 0.2 * float((x - x.mean(0)).square().sum(1).mean())
    assert found[1, "noise_variance"] == pytest.approx(sigma)
    expected = kernel_information(states[1], labels, sigma)
    assert (found[1, "kernel_input"], found[1, "kernel_label"]) == pytest.approx(expected[:2])
    larger = information_plane(7 * states, labels, summaries, NO_LABELS, noise=0.2)
    assert larger[1, "kernel_input"] == pytest.approx(found[1, "kernel_input"])


def test_bins_of_units_that_saturate() -> None:
    states, labels, summaries = given()
    states = states.tanh()
    found = information_plane(states, labels, summaries, NO_LABELS, saturating=True, bins=8)
    assert found[0, "binned_input"] == binned_information(states[0], labels, 8, (-1.0, 1.0)).input
    assert found[0, "binned_input"] != information_plane(states, labels, summaries, NO_LABELS)[0, "binned_input"]


def test_labels_of_sequences_come_before_the_next_token() -> None:
    states, labels, _ = given()
    found = information_plane(states[:, :5], torch.arange(5), states, labels)
    assert found == information_plane(states, labels, states[:, :2], NO_LABELS)


@pytest.mark.parametrize("options", [{"bins": 1}, {"noise": 0.0}, {"noise": -1.0}])
def test_options_out_of_their_range(options: dict[str, float]) -> None:
    states, labels, summaries = given()
    with pytest.raises(UserError, match="expected two bins or more and a positive noise"):
        information_plane(states, labels, summaries, NO_LABELS, **options)  # type: ignore[arg-type]


def test_what_nothing_can_be_said_of() -> None:
    states, labels, summaries = given()
    with pytest.raises(UserError, match="no labels"):
        information_plane(states, torch.full_like(labels, -100), summaries, NO_LABELS)
    with pytest.raises(UserError, match="1 of 1 classes have 1 states or more"):
        information_plane(states, torch.zeros_like(labels), summaries, NO_LABELS)
    states[1, 4, 1] = torch.inf
    with pytest.raises(UserError, match="at point 1 are not finite"):
        information_plane(states, labels, summaries, NO_LABELS)


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_next_tokens_of_a_language_model(make: object) -> None:
    model, ids = make(), token_ids(4, 24)  # type: ignore[operator]
    frame = tables(model, {"input_ids": ids}, "information_plane")["information_plane"]
    h, _, _ = stream(model, ids)
    targets = ids[:, 1:].flatten()
    for point, state in enumerate(h):
        chosen = frame[frame["point"] == point]
        found = dict(zip(chosen["quantity"], chosen["value"]))
        expected = binned_information(state[:, :-1].flatten(0, 1), targets)
        assert found["binned_input"] == pytest.approx(expected.input)
        assert found["binned_label"] == pytest.approx(expected.label)
        assert found["input_ceiling"] == pytest.approx(math.log2(len(targets)))


def test_before_the_first_block_a_rotary_model_knows_the_token_alone() -> None:
    ids = token_ids(4, 24)
    frame = tables(llama(), {"input_ids": ids}, "information_plane")["information_plane"]
    bottom = frame[frame["point"] == 0].set_index("quantity")["value"]
    tokens = ids[:, :-1].flatten()
    expected = binned_information(tokens[:, None].float(), ids[:, 1:].flatten(), bins=1000)
    assert bottom["binned_input"] == pytest.approx(expected.input)
    assert bottom["binned_label"] == pytest.approx(expected.label)


def test_the_batch_split_changes_nothing() -> None:
    ids = {"input_ids": token_ids(4, 24)}
    whole, split = (tables(llama(), ids, "information_plane", batch=b)["information_plane"] for b in (4, 1))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4, atol=1e-6)
