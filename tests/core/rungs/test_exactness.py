"""The new model computes what the plan says; what does not is named."""

from __future__ import annotations

import copy

import pytest
import torch
from naive import blocks_of
from surgery import case, climb, gemma, reordered
from torch import nn
from zoo import ZOO, gpt2, llama, token_ids

from layerwright.core.rungs.answers import Preserved, answer, preserved
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.exactness import exactness

IDS = {"input_ids": token_ids()}


@pytest.mark.parametrize("order", [(0, 2), (0, 2, 1, 2), (2, 0, 1), (1,)])
@pytest.mark.parametrize("build", [llama, gpt2, gemma])
def test_the_bases_blocks_in_the_plans_order_give_the_same_bit_for_bit(build: object, order: tuple[int, ...]) -> None:
    found = climb(exactness, case(order, build()))  # type: ignore[operator]
    assert found.verdict == "passed", found.finding
    assert found.numbers["per_block"] == [0.0] * (len(order) + 1)
    assert found.numbers["replayed"]["max_error"] == 0.0


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_the_first_block_that_does_something_else_is_named(block: int) -> None:
    given = case((0, 2, 1, 2))
    blocks_of(given.after)[block].mlp.down_proj.weight.data *= 1.01
    found = climb(exactness, given)
    assert found.verdict == "failed"
    source = (0, 2, 1, 2)[block]
    assert found.finding.startswith(
        f"block {block} (model.layers.{block}) does not do what block {source} of the base does"
    )


def test_blocks_in_another_order_than_the_plans_are_found() -> None:
    base = llama()
    found = climb(exactness, case((0, 2, 1), base, after=reordered(base, (0, 1, 2))))
    assert found.finding.startswith("block 1 (model.layers.1) does not do what block 2 of the base does")


def test_a_wrong_kind_of_attention_is_found() -> None:
    base = gemma()
    after = reordered(base, (2, 1, 0), kinds=False)
    after.config.layer_types = ["sliding_attention"] * 3
    found = climb(exactness, case((2, 1, 0), base, after=after))
    assert found.finding.startswith("block 1 (model.layers.1) does not do what block 1 of the base does")


def test_an_embedding_that_changed_is_told_apart() -> None:
    given = case((0, 2))
    given.after.model.embed_tokens.weight.data *= 1.01
    assert climb(exactness, given).finding.startswith("the stream differs before block 0")


def test_a_head_that_changed_is_told_apart() -> None:
    given = case((0, 2))
    given.after.lm_head.weight.data *= 1.01
    found = climb(exactness, given).finding
    assert "every block is right, so that it is what follows the tower" in found


def test_another_width_is_no_crash() -> None:
    given = case((0, 2), after=reordered(llama(hidden_size=32), (0, 2)))
    assert climb(exactness, given).finding.startswith("the stream differs before block 0, relative error inf")


def test_half_precision_has_its_own_tolerance() -> None:
    base = llama().bfloat16()
    found = climb(exactness, case((0, 2, 1), base))
    assert found.verdict == "passed"
    assert found.limit.startswith("0.02 ×")


def test_nan_is_said_before_anything_is_compared() -> None:
    given = case((0, 2), copies=False)
    given.after.model.norm.weight.data[:] = torch.nan
    assert climb(exactness, given).finding == "the new model answers NaN, and the base does not"


def test_an_encoder_and_a_network_without_text() -> None:
    for name in ("bert", "vit", "nn.TransformerEncoder, norm first"):
        model, inputs, _ = ZOO[name]()
        found = climb(exactness, Case(model.eval(), copy.deepcopy(model), inputs, order=(0, 1, 2), copies=True))
        assert found.verdict == "passed", found.finding


# What was expected


def test_expected_answers_as_a_tensor_or_a_function() -> None:
    base = llama().eval()
    after = reordered(base, (0, 2))
    wanted = answer(after, IDS).detach()
    for expected in (wanted, lambda inputs: answer(after, inputs)):
        found = climb(exactness, Case(base, after, IDS, expected=expected))
        assert found.verdict == "passed"
        assert found.numbers["expected"]["max_error"] == 0.0
    found = climb(exactness, Case(base, after, IDS, expected=wanted + 0.1))
    assert found.verdict == "failed"
    assert found.finding.startswith("answers are 0.1 off what was expected")


# Steps


def grown(base: nn.Module) -> nn.Module:
    """A copy with a block more, whose last weights are zero."""
    after = reordered(base, (0, 1, 1, 2))
    block = blocks_of(after)[2]
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()
    return after


def test_a_silent_block_preserves_exactly() -> None:
    base = llama().eval()
    step = preserved(base, grown(base), IDS, step="insert", declared="exact")
    found = climb(exactness, Case(base, grown(base), IDS, steps=(step,)))
    assert found.verdict == "passed"
    assert found.numbers["steps"][0]["held"]
    assert step.max_error == 0.0


def test_a_step_that_declares_itself_exact_and_is_not_fails() -> None:
    base = llama().eval()
    step = preserved(base, reordered(base, (0, 1, 1, 2)), IDS, step="insert", declared="exact")
    found = climb(exactness, Case(base, base, IDS, steps=(Preserved("drop", "none", 9.0, 0.0, 0.0, 9.0), step)))
    assert found.verdict == "failed"
    assert found.finding.startswith("step 2 (insert) declares itself exact: answers are")


@pytest.mark.parametrize("declared", ["approximate", "none"])
def test_a_step_must_be_exact_where_the_plan_asks_for_it(declared: str) -> None:
    base = llama().eval()
    step = Preserved("recurse", declared, 0.5, 1e-5, 0.9, 0.1)
    found = climb(exactness, Case(base, base, IDS, steps=(step,)))
    assert found.verdict == "measured"
    assert found.finding == f"recurse ({declared}) changes answers by 5.0e-01"
    found = climb(exactness, Case(base, base, IDS, steps=(step,), requirements={"exact": ["recurse"]}))
    assert found.verdict == "failed"
    assert "the plan asks for exact" in found.finding


def test_without_anything_to_hold_against_nothing_is_held() -> None:
    base = llama().eval()
    found = climb(exactness, Case(base, base, IDS, order=(0, 1, 2)))
    assert found.verdict == "not run"
    assert found.finding.startswith("nothing says what the new model must compute")
