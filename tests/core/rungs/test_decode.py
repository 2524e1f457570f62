"""Reading with a cache, behind padding and row by row: what a broken edit gets wrong, and what its base does too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import blocks_of
from surgery import case, climb, gemma, reordered
from torch import Tensor, nn
from zoo import ZOO, gpt2, language_model, llama, token_ids

from layerwright.core.rungs.case import Case
from layerwright.core.rungs.decode import decode

WAYS = ("tokens", "chunks", "padding", "rows")


def opt() -> nn.Module:
    return language_model("OPT", ffn_dim=24, word_embed_proj_dim=16, init_std=0.2)


@pytest.mark.parametrize("order", [(0, 2), (0, 2, 1, 2)])
@pytest.mark.parametrize("build", [llama, gpt2, gemma])
def test_a_right_edit_reads_the_same_in_every_way(build: Any, order: tuple[int, ...]) -> None:
    found = climb(decode, case(order, build()))
    assert found.verdict == "passed", found.finding
    assert all(found.numbers[way] <= 1e-5 for way in WAYS)
    assert found.numbers["base"] == {}


def by_hand(model: nn.Module, ids: Tensor) -> float:
    """Largest error of cached decoding, token by token, as a user would write it."""
    cache, worst = None, 0.0
    with torch.no_grad():
        full = model(input_ids=ids, use_cache=False).logits
        for t in range(ids.shape[1]):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            scale = max(1.0, float(full[:, t].abs().max()))
            worst = max(worst, float((out.logits[:, 0] - full[:, t]).abs().max()) / scale)
    return worst


def test_one_cache_for_two_blocks_is_found_and_the_block_that_reads_the_others_keys_named() -> None:
    base = gpt2()
    given = case((0, 1, 1, 2), base, after=reordered(base, (0, 1, 1, 2), copies=False))
    found = climb(decode, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("token by token from a cache the new model is")
    assert "first at block 2 (transformer.h.1)" in found.finding
    assert found.numbers["tokens"] == pytest.approx(by_hand(given.after, token_ids()), rel=1e-3)
    assert found.numbers["tokens"] > 1e-3
    assert found.numbers["base"]["tokens"] <= 1e-5


def test_a_stale_number_beyond_the_cache_is_said_in_one_line() -> None:
    base = llama()
    found = climb(decode, case((0, 2), base, after=reordered(base, (0, 2), numbers=False)))
    assert found.verdict == "failed"
    assert found.finding.startswith("token by token from a cache raises IndexError")
    assert "\n" not in found.finding


def test_the_plan_says_how_many_tokens_are_decoded() -> None:
    given = case((0, 2), requirements={"decode": {"tokens": 4}})
    lengths: list[int] = []
    given.after.register_forward_pre_hook(lambda m, a, k: lengths.append(k["input_ids"].shape[1]), with_kwargs=True)
    with given.quiet():
        _ = given.new
        lengths.clear()
        decode(given)
    # One token to learn the name of the cache, eight at once, the plain pass beside them, four one by one.
    assert lengths[:7] == [1, 8, 12, 1, 1, 1, 1]


def test_only_real_tokens_are_decoded() -> None:
    ids, mask = token_ids(), torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    found = climb(decode, case((0, 2), gpt2(), inputs={"input_ids": ids, "attention_mask": mask}))
    assert found.verdict == "passed", found.finding
    mask = mask.flip(1)  # padding in front
    found = climb(decode, case((0, 2), gpt2(), inputs={"input_ids": ids, "attention_mask": mask}))
    assert found.verdict == "passed", found.finding


# Padding and rows


def blind(model: nn.Module, block: int) -> nn.Module:
    """The model with a block that does not see the mask."""
    attention = blocks_of(model)[block].self_attn

    def without(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        square = mask is not None and mask.shape[-2] == mask.shape[-1]
        return args, kwargs | {"attention_mask": torch.ones_like(mask).tril() if square else mask}

    attention.register_forward_pre_hook(without, with_kwargs=True)
    return model


def test_a_block_that_sees_padding_is_named() -> None:
    given = case((0, 2, 1))
    blind(given.after, 1)
    found = climb(decode, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("behind padding the new model is")
    assert "first at block 1 (model.layers.1)" in found.finding


def test_what_the_base_gets_wrong_too_is_not_the_edits_fault() -> None:
    base = blind(llama(), 1)
    found = climb(decode, case((0, 1, 2), base))
    assert found.verdict == "passed", found.finding
    assert "behind padding the base is off as well" in found.finding
    assert found.numbers["base"]["padding"] > 1e-3


class Mixing(nn.Module):
    """Takes the mean over the rows away, so that rows see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.1 * x.mean(0, keepdim=True)


def test_rows_that_see_each_other_are_found() -> None:
    given = case((0, 2, 1))
    mlp = blocks_of(given.after)[2].mlp
    blocks_of(given.after)[2].mlp = nn.Sequential(mlp, Mixing())
    found = climb(decode, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("row by row the new model is")
    assert "first at block 2 (model.layers.2)" in found.finding


# What does not apply


def test_an_encoder_keeps_nothing_and_is_read_row_by_row() -> None:
    model, inputs, _ = ZOO["bert"]()
    found = climb(decode, Case(model, model, inputs))
    assert found.verdict == "passed"
    assert "no cached decoding: tokens see later ones" in found.finding
    assert found.numbers["rows"] <= 1e-5
    assert "tokens" not in found.numbers


def test_a_wrapper_that_hides_the_cache_says_so() -> None:
    model, inputs, _ = ZOO["own wrapper"]()
    found = climb(decode, Case(model, model, inputs))
    assert found.verdict == "passed"
    assert "no cached decoding: Wrapper keeps no keys and values" in found.finding


def test_images_are_read_row_by_row() -> None:
    model, inputs, _ = ZOO["vit"]()
    found = climb(decode, Case(model, model, inputs))
    assert (found.verdict, found.numbers["rows"] <= 1e-5) == ("passed", True)


def test_one_row_has_nothing_beside_it() -> None:
    found = climb(decode, case((0, 2), inputs={"input_ids": token_ids(1)}))
    assert found.verdict == "passed"
    assert "one row only" in found.finding
    found = climb(decode, case((0, 2), inputs={"input_ids": token_ids(3, 1)}))
    assert "a row has fewer than 2 tokens" in found.finding


@pytest.mark.parametrize("name", ["mamba", "mixtral", "bloom", "opt", "t5 decoder", "qwen3", "olmo2"])
def test_bases_of_other_architectures_are_not_blamed(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    found = climb(decode, Case(model.eval(), model, inputs, blocks=expected.blocks))
    assert found.verdict == "passed", found.finding
    assert found.numbers["tokens"] <= 1e-5


def test_half_precision_decodes_within_its_own_tolerance() -> None:
    found = climb(decode, case((0, 2), llama().bfloat16()))
    assert found.verdict == "passed", found.finding
    assert found.numbers["limit"] == 2e-2
