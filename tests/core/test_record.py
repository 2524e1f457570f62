"""One pass over the data gives the same numbers however it is split, and tests itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from naive import tables
from thinned import thinned
from torch import Tensor, nn
from walking import few_replicates
from zoo import ZOO, language_model, llama, token_ids, vectors

import layerwright.core.lens as lens
import layerwright.core.record as recording
from layerwright.core.record import record
from layerwright.core.registry import MEASURES, choose
from layerwright.core.stack import Stack


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    few_replicates(monkeypatch)


def assert_equal(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    """All columns of all tables, to the rounding of float32."""
    assert list(found) == list(expected)
    for name, frame in expected.items():
        index = frame.attrs["index"]
        assert found[name][index].equals(frame[index]), name
        for column in frame.columns.difference(index):
            a, b = (torch.tensor(x[column].to_numpy(dtype=float)) for x in (found[name], frame))
            torch.testing.assert_close(
                a, b, rtol=2e-5, atol=2e-6, equal_nan=True, msg=lambda m, at=f"{name} {column}": f"{at}: {m}"
            )


def ragged(side: str) -> dict[str, Tensor]:
    lengths = (11, 40, 6, 17, 33, 12, 3, 10)
    mask = torch.stack([torch.arange(40) < n for n in lengths]).long()
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": token_ids(8, 40).masked_fill(mask == 0, 0), "attention_mask": mask}


CASES: dict[str, Any] = {
    "causal": lambda: (llama(), {"input_ids": token_ids(8)}),
    "right padding": lambda: (llama(), ragged("right")),
    "left padding": lambda: (llama(), ragged("left")),
    "encoder": lambda: (
        language_model("Bert", "BertForMaskedLM", hidden_dropout_prob=0.0),
        ragged("right") | {"labels": token_ids(8, 40, seed=3)},
    ),
    "plain vectors": lambda: (ZOO["nn.Sequential"]()[0], vectors(8, 8)),
    "images": lambda: (
        ZOO["resnet"]()[0],
        {"pixel_values": vectors(8, 3, 16, 16), "labels": torch.tensor([0, 1] * 4)},
    ),
}


@pytest.mark.parametrize("name, size", thinned(2, CASES, (1, 3)))
def test_the_batch_split_changes_nothing(name: str, size: int) -> None:
    model, inputs = CASES[name]()
    expected = tables(model, inputs)
    assert len(expected) >= 9
    assert_equal(tables(model, inputs, batch=size), expected)


def test_sequences_alone_without_their_padding_change_nothing() -> None:
    model, inputs = llama(), ragged("right")
    alone = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        alone.append({"input_ids": ids[mask.bool()][None]})
    found = record(Stack.find(model, inputs), alone, choose("deep"), sequences=8).tables
    assert_equal(found, tables(model, inputs))


def test_pieces_inside_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llama(), ragged("right")
    expected = tables(model, inputs)
    monkeypatch.setattr(recording, "_STATE_BYTES", 1)
    monkeypatch.setattr(lens, "_AT_ONCE", 1)
    assert_equal(tables(model, inputs), expected)


def test_order_of_sequences_changes_no_mean() -> None:
    model, ids = llama(), token_ids(8)
    names = ("residual_contribution", "residual_cosine", "angular_distance", "block_influence", "stream_scale")
    there, back = (tables(model, {"input_ids": x}, *names) for x in (ids, ids.flip(0)))
    for name in names:
        for column in ("value", "std", "p95", "max"):
            a, b = (torch.tensor(x[name][column].to_numpy()) for x in (there, back))
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_tables_and_another_seed_other_probes() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    first, again, other = (tables(model, inputs, seed=seed) for seed in (3, 3, 4))
    assert all(first[name].equals(again[name]) for name in first)
    assert not first["jacobian_identity"]["value"].equals(other["jacobian_identity"]["value"])
    assert first["residual_contribution"]["value"].equals(other["residual_contribution"]["value"])


def test_the_global_random_state_does_not_matter() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    with torch.random.fork_rng():
        torch.manual_seed(123)
        first = tables(model, inputs)
        torch.manual_seed(321)
        assert_equal(tables(model, inputs), first)


def test_only_what_is_asked_for_and_what_it_reads_from() -> None:
    found = tables(llama(), {"input_ids": token_ids()}, "depth_score")
    assert set(found) == {"depth_score", "skip_effect", "skip_output"}


def test_progress_only_moves_forward_and_arrives() -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    model, inputs = llama(), {"input_ids": token_ids(4)}
    tables(model, inputs, batch=2, progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))
    assert set(seen) == {"forward", "skips", "inside", "gradients", "weights"}
    for stage, steps in seen.items():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps), stage
        assert steps[-1][0] == steps[-1][1], stage


CHECKS = {"h₀ + Σ updates = h_L", "lens(h_L) = logits", "blocks called again = forward pass"}


def checks(stack: Stack, inputs: Any) -> dict[str, recording.Check]:
    return {c.name: c for c in record(stack, [inputs], choose("deep"), sequences=3).checks}


def test_self_tests_pass() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    found = checks(Stack.find(model, inputs), inputs)
    assert set(found) == CHECKS
    assert all(c.passed and c.error <= c.tolerance for c in found.values())


def test_a_wrong_sublayer_fails_the_sum() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    wrong = tuple((replace(a, scale=1.01), b) for a, b in stack.parts)
    assert not checks(replace(stack, parts=wrong), inputs)["h₀ + Σ updates = h_L"].passed


class Remembers(nn.Module):
    """A head that answers otherwise at every call."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.calls = head, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x) * (1 + 1e-3 * self.calls)


def test_a_head_that_changes_fails_the_lens() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    model.lm_head = Remembers(model.lm_head)
    stack = replace(Stack.find(model, inputs), head="token", tokenwise=True)
    assert not checks(stack, inputs)["lens(h_L) = logits"].passed


def test_a_block_that_changes_fails_the_replay() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    model.model.layers[1].mlp.down_proj = Remembers(model.model.layers[1].mlp.down_proj)
    stack = Stack.find(model, inputs)
    assert not checks(stack, inputs)["blocks called again = forward pass"].passed


def test_what_cannot_be_measured_is_noted() -> None:
    model, inputs, _ = ZOO["nn.TransformerEncoder"]()
    notes = record(Stack.find(model, inputs), [inputs], choose("deep"), sequences=3).notes
    for name in ("logit_lens", "skip_output", "first_order_skip", "effective_depth", "depth_score"):
        assert any(note.startswith(f"{name} could not be") for note in notes)


def test_a_prefix_is_left_out_everywhere() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    frames = tables(model, inputs, prefix=4)
    assert (frames["residual_contribution"]["tokens"] == 3 * 8).all()
    assert (frames["stream_scale"]["tokens"] == 3 * 8).all()
    rises = frames["skip_output"][frames["skip_output"]["quantity"] == "loss_increase"]
    assert (rises["tokens"] == 3 * 7).all()
    # What is left equals the same tokens of a survey without the prefix.
    whole = tables(model, inputs, "stream_scale")["stream_scale"]
    assert not whole["value"].equals(frames["stream_scale"]["value"])


@pytest.mark.parametrize("name", MEASURES)
def test_every_table_says_what_it_is(name: str) -> None:
    meta = MEASURES[name].meta()
    assert meta["title"]
    assert meta["definition"]
    assert meta["formula"]
    assert meta["paper"]["url"].startswith("https://arxiv.org/abs/")
