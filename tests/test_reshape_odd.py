"""Edits of models whose configurations speak of single blocks in unusual ways: right, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_models import ODD, embedded_by_block, odd, streams_beside, tapped_vision
from thinned import thinned
from torch import Tensor, nn
from zoo import token_ids

import layerwright as lw
from layerwright.core.base import LiveBase
from layerwright.core.edit import apply
from layerwright.core.load import quietly
from layerwright.core.plan import Plan
from layerwright.core.stack import Stack

KINDS = ("drop", "repeat", "swap")
# What no configuration of the class says, and the entries that would have to.
REFUSED = {
    ("jamba", "drop"): "attn_layer_period and attn_layer_offset|expert_layer_period and expert_layer_offset",
    ("jamba", "repeat"): "attn_layer_period and attn_layer_offset|expert_layer_period and expert_layer_offset",
    ("jamba", "swap"): "attn_layer_period and attn_layer_offset|expert_layer_period and expert_layer_offset",
    ("zamba2", "drop"): "layers_block_type",
    ("zamba2", "repeat"): "layers_block_type",
    ("deepseek-v3", "swap"): "first_k_dense_replace",
}


def order_of(kind: str, depth: int) -> list[int]:
    """Block 1 left out or twice, or blocks 1 and 2 in each other's place."""
    start = {"drop": [0], "repeat": [0, 1, 1], "swap": [0, 2, 1]}[kind]
    return [*start, *range(3 if kind == "swap" else 2, depth)]


@contextmanager
def noted(blocks: Sequence[nn.Module], calls: list[Any]) -> Iterator[None]:
    """Note what each block is called with, and what it returns."""

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output))

    handles = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    yield
    for handle in handles:
        handle.remove()


def walked(model: Any, inputs: Any, order: Sequence[int] | None = None) -> Tensor:
    """The state after the last block; with an order, of the blocks called by hand as the model calls each."""
    blocks, calls = list(model.model.layers), []
    with torch.no_grad(), noted(blocks, calls):
        model(**inputs, use_cache=False)
    if order is None:
        return calls[-1][2]
    args, kwargs, _ = calls[0]
    state = args[0] if args else kwargs["hidden_states"]
    for k in order:
        args, kwargs, _ = calls[k]
        with torch.no_grad():
            out = blocks[k](state, *args[1:], **{n: v for n, v in kwargs.items() if n != "hidden_states"})
        state = out[0] if isinstance(out, tuple) else out
    return state


def edited(name: str, order: Sequence[int], until: str) -> tuple[Any, nn.Module, Any]:
    """The new model, held against the base's blocks by the ladder and by hand."""
    model, inputs = odd(name)
    new, report = lw.reshape(model, Plan(({"order": list(order)},)), inputs, until=until)
    assert report.ok, report.ladder.lines()
    replayed = report.ladder["exactness"].numbers["replayed"]
    assert replayed["max_error"] <= 1e-5 * max(1.0, replayed["scale"])
    state, wanted = walked(new, inputs), walked(model, inputs, order)
    assert (state - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return new, model, inputs


def refused(name: str, order: Sequence[int], words: str) -> None:
    model, inputs = odd(name)
    with pytest.raises(lw.UserError, match=words) as error:
        lw.reshape(model, Plan(({"order": list(order)},)), inputs, until="decode")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, kind", thinned(4, ODD, KINDS))
def test_edits_are_right_or_refused_by_the_entry_that_cannot_say_them(name: str, kind: str) -> None:
    depth = len(odd(name)[0].model.layers)
    if words := REFUSED.get((name, kind)):
        refused(name, order_of(kind, depth), words)
    else:
        edited(name, order_of(kind, depth), "decode")


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_what_was_edited_loads_as_a_plain_model(name: str) -> None:
    kind = next((kind for kind in KINDS if (name, kind) not in REFUSED), None)
    order = order_of(kind, len(odd(name)[0].model.layers)) if kind else [1, 2, 3, 4, 5]
    edited(name, order, "reload")


# Entries follow their source


def test_a_depth_that_is_only_the_length_of_a_pattern() -> None:
    new, _, _ = edited("nemotron-h", [0, 2, 1, 4, 4, 5], "exactness")
    assert new.config.hybrid_override_pattern == "MM*--E"
    assert "num_hidden_layers" not in new.config.to_dict()


@pytest.mark.parametrize(
    "order, period, offset, expert_period, expert_offset",
    [
        ([1, 2, 3, 4, 5], 3, 1, 2, 0),  # all move up by one
        ([5, 4, 3, 2, 1, 0], 3, 0, 2, 0),
        ([1, 5], None, None, 1, 0),  # experts everywhere
        ([0, 1, 4], None, None, 2, 1),  # attention nowhere
    ],
)
def test_periods_and_offsets_are_found(
    order: list[int], period: int | None, offset: int | None, expert_period: int | None, expert_offset: int | None
) -> None:
    new, base, _ = edited("jamba", order, "exactness")
    made, wanted = new.config, base.config
    assert made.layers_block_type == [wanted.layers_block_type[k] for k in order]
    assert made.layers_num_experts == [wanted.layers_num_experts[k] for k in order]
    found = (made.attn_layer_period, made.attn_layer_offset, made.expert_layer_period, made.expert_layer_offset)
    asked = (period, offset, expert_period, expert_offset)
    assert all(want is None or got == want for got, want in zip(found, asked)), found


def test_numbers_and_items_by_block_follow() -> None:
    new, base, _ = edited("llama4", [3, 1, 0, 2, 3], "exactness")
    assert base.config.moe_layers == [1, 3]
    assert new.config.moe_layers == [0, 1, 4]
    assert new.config.no_rope_layers == [base.config.no_rope_layers[k] for k in (3, 1, 0, 2, 3)]
    new, _, _ = edited("bamba", [1, 1, 0, 3], "exactness")
    assert new.config.attn_layer_indices == [0, 1, 3]
    new, _, _ = edited("mllama", [0, 1, 2, 4, 3], "exactness")
    assert new.config.cross_attention_layers == [1, 4]


def test_settings_under_the_numbers_of_blocks_follow() -> None:
    new, _, _ = edited("gemma4", [1, 0, 2, 3, 4, 4, 5], "exactness")
    assert new.config.to_dict()["per_layer_config"] == {str(k): {"head_dim": 12} for k in (0, 3, 6)}
    assert new.config.num_kv_shared_layers == 3


def test_a_block_that_others_take_keys_from_stays_their_last() -> None:
    refused("gemma4", [0, 1, 3, 4, 5], "num_kv_shared_layers")


def test_weights_that_blocks_of_one_kind_share_stay_one() -> None:
    new, _, _ = edited("zamba2", [0, 2, 1, 3, 4], "exactness")
    first, _, third = (new.model.layers[k].shared_transformer for k in (2, 3, 4))
    assert first.self_attn.q_proj.weight is third.self_attn.q_proj.weight


def test_the_part_that_a_shared_block_has_for_each_place_cannot_move() -> None:
    refused("zamba2", [4, 3, 2, 1, 0], "layers_block_type")


def test_blocks_numbered_under_another_name_in_each_kind_keep_their_order() -> None:
    class Kind(nn.Module):
        def __init__(self, name: str, k: int) -> None:
            super().__init__()
            self.name = name
            self.add_module(name, nn.Linear(16, 16))
            self.get_submodule(name).layer_idx = k

        def forward(self, x: Tensor) -> Tensor:
            return x + self.get_submodule(self.name)(x)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 16)
            self.layers = nn.ModuleList([Kind("attention" if k % 2 else "recurrence", k) for k in range(4)])

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.embedding(input_ids)
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    new, report = lw.reshape(
        Mixed().eval(), Plan(({"order": [1, 0, 1, 3]},)), {"input_ids": token_ids()}, until="exactness"
    )
    assert report.ok, report.ladder.lines()
    assert [layer.get_submodule(layer.name).layer_idx for layer in new.layers] == [0, 1, 2, 3]


# Weights outside the tower that belong to single blocks


def saved(model: nn.Module, folder: Path) -> str:
    with quietly():
        model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("order", [[0, 1, 3, 4, 5], [0, 2, 1, 3, 4, 5]])
def test_a_table_with_something_for_each_block_is_named(order: list[int], tmp_path: Path) -> None:
    words = "embed_tokens_per_layer.weight, around the blocks, .*num_hidden_layers"
    model, inputs = embedded_by_block()
    with pytest.raises(lw.UserError, match=words):
        apply(Stack.find(model, inputs), Plan(({"order": order},)), inputs)
    folder = saved(streams_beside()[0], tmp_path / "base")
    with pytest.raises(lw.UserError, match=words):
        lw.reshape(folder, Plan(({"order": order[:-1]},)), out=tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def tapped(model: Any, order: Sequence[int]) -> Any:
    """The model with other blocks in its vision tower, by hand; what feeds the language model stays the same blocks."""
    new = copy.deepcopy(model)
    vision = new.model.visual
    taps = list(vision.deepstack_visual_indexes)
    vision.blocks = nn.ModuleList([copy.deepcopy(vision.blocks[k]) for k in order])
    vision.deepstack_visual_indexes = [order.index(k) for k in taps]
    return new


@pytest.mark.parametrize("order", [[0, 2, 3], [0, 1, 1, 2, 3], [1, 0, 3, 2]])
def test_blocks_that_feed_another_tower_are_renumbered(order: list[int], tmp_path: Path) -> None:
    model, inputs = tapped_vision()
    folder = saved(model, tmp_path / "base")
    plan = Plan(({"order": order},))
    lw.reshape(folder, plan, out=tmp_path / "new", blocks="model.visual.blocks", until="none")
    config = json.loads((tmp_path / "new" / "config.json").read_text())["vision_config"]
    assert (config["depth"], config["deepstack_visual_indexes"]) == (len(order), [order.index(0), order.index(2)])
    with quietly():
        new = type(model).from_pretrained(tmp_path / "new").eval()
    with torch.no_grad():
        got, wanted, base = (m(**inputs).logits for m in (new, tapped(model, order), model))
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (got - base).abs().max() > 1e-2


@pytest.mark.parametrize("order", [[0, 1, 3], [0, 0, 1, 2, 3], [2, 1, 0, 3]])
def test_blocks_that_feed_another_tower_each_once_and_in_turn_must_stay(order: list[int], tmp_path: Path) -> None:
    folder = saved(tapped_vision()[0], tmp_path / "base")
    with pytest.raises(lw.UserError, match=r"deepstack_visual_indexes \[0, 2\].*deepstack_merger_list"):
        lw.reshape(folder, Plan(({"order": order},)), out=tmp_path / "new", blocks="model.visual.blocks")


def test_the_base_is_left_as_it_was() -> None:
    model, inputs = odd("gemma4")
    before, entries = LiveBase(Stack.find(model, inputs), inputs).fingerprint(), model.config.to_dict()
    apply(Stack.find(model, inputs), Plan(({"order": [1, 2, 3, 4, 5]},)), inputs)
    assert LiveBase(Stack.find(model, inputs), inputs).fingerprint() == before
    assert model.config.to_dict() == entries
