"""How far the stream has moved, block by block, against plain hooks and loops."""

from __future__ import annotations

import copy

import pytest
import torch
from naive import blocks_of, decode, stream
from surgery import case, climb, reordered
from torch.nn.functional import cosine_similarity, kl_div
from zoo import ZOO, gpt2, llama, token_ids

from layerwright.core.rungs.case import Case
from layerwright.core.rungs.drift import drift


def test_cosine_and_divergence_are_those_of_plain_hooks() -> None:
    order = (0, 2, 1, 2)
    given = case(order)
    found = climb(drift, given)
    ids = token_ids()
    h, g = stream(given.before, ids)[0], stream(given.after, ids)[0]
    for j, k in enumerate(order):
        cosine = cosine_similarity(h[k + 1], g[j + 1], dim=-1).mean()
        assert found.numbers["cosine"][j] == pytest.approx(float(cosine), abs=1e-6)
        p, q = (decode(m, x).log_softmax(-1) for m, x in ((given.before, h[k + 1]), (given.after, g[j + 1])))
        divergence = kl_div(q, p, log_target=True, reduction="sum") / ids.numel()
        assert found.numbers["divergence"][j] == pytest.approx(float(divergence), rel=1e-4, abs=1e-6)
    rises = torch.tensor([0.0, *found.numbers["divergence"]]).diff()
    assert found.numbers["breaks_at"] == int(rises.argmax())
    assert found.verdict == "measured"
    assert f"rising most at block {int(rises.argmax())}" in found.finding


def test_a_copy_has_not_moved() -> None:
    found = climb(drift, case((0, 1, 2), gpt2()))
    assert found.numbers["cosine"] == pytest.approx([1.0] * 3, abs=1e-6)
    assert found.numbers["divergence"] == pytest.approx([0.0] * 3, abs=1e-6)


def test_padding_does_not_count() -> None:
    ids, mask = token_ids(), torch.ones(3, 12, dtype=torch.long)
    mask[0, 8:] = 0
    other = torch.where(mask.bool(), ids, (ids + 7) % 40)
    first, second = (
        climb(drift, case((0, 2), inputs={"input_ids": x, "attention_mask": mask})).numbers for x in (ids, other)
    )
    assert first["cosine"] == pytest.approx(second["cosine"], abs=1e-6)
    assert first["divergence"] == pytest.approx(second["divergence"], abs=1e-6)


def test_a_limit_that_is_broken_names_the_first_block() -> None:
    given = case((0, 1, 2))
    blocks_of(given.after)[1].mlp.down_proj.weight.data *= -3
    given.requirements = {"drift": {"min_cosine": 0.999}}
    found = climb(drift, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("the stream's cosine after block 1 (model.layers.1) is 0.")
    assert found.limit == "cosine ≥ 0.999"
    given.requirements = {"drift": {"max_divergence": 1e-4}}
    found = climb(drift, given)
    assert found.finding.startswith("the lens after block 1 (model.layers.1) is ")
    assert found.limit == "divergence ≤ 0.0001 nat"


def test_limits_that_are_kept_pass() -> None:
    found = climb(drift, case((0, 2), requirements={"drift": {"min_cosine": -1.0, "max_divergence": 100.0}}))
    assert found.verdict == "passed"
    assert found.limit == "cosine ≥ -1, divergence ≤ 100 nat"


def test_blocks_that_nobody_matched_are_not_compared() -> None:
    given = case((0, 2))
    given.order = None
    assert climb(drift, given).finding.startswith("the new blocks are not matched with the base's")


def test_streams_of_two_widths_are_not_compared() -> None:
    found = climb(drift, case((0, 2), after=reordered(llama(hidden_size=32), (0, 2))))
    assert found.finding == "the streams are 16 and 32 wide, and do not compare"


def test_a_model_without_a_head_has_only_its_stream() -> None:
    model, inputs, _ = ZOO["nn.TransformerEncoder"]()
    given = Case(model, copy.deepcopy(model), inputs, order=(0, 1, 2))
    found = climb(drift, given)
    assert "no logits to read off" in found.finding
    assert "divergence" not in found.numbers
    given.requirements = {"drift": {"max_divergence": 1.0}}
    assert climb(drift, given).verdict == "failed"


def test_a_classifier_of_images_has_a_lens() -> None:
    model, inputs, _ = ZOO["vit"]()
    found = climb(drift, Case(model, copy.deepcopy(model), inputs, order=(0, 1, 2)))
    assert found.numbers["divergence"] == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_tower_of_one_block() -> None:
    found = climb(drift, case((2,)))
    assert len(found.numbers["cosine"]) == 1
    assert found.numbers["source"] == [2]
