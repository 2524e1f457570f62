"""Configurations for other blocks: entries that go by block follow their source, and what cannot be said is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from layerwright.core.base import LiveBase
from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.plan import Plan
from layerwright.core.stack import Stack

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 24, "vocab_size": 40,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def based(model: torch.nn.Module) -> tuple[Stack, dict[str, torch.Tensor]]:
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    return Stack.find(model.eval(), inputs), inputs


def qwen3_moe(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **MOE, **options))


def kinds(model: Any) -> str:
    return "".join("d" if type(layer.mlp).__name__.endswith("MLP") else "s" for layer in model.model.layers)


@pytest.mark.parametrize(
    "options, order",
    [
        ({"mlp_only_layers": [0, 2]}, [0, 1, 3]),
        ({"mlp_only_layers": [0, 2]}, [2, 2, 1, 0, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"decoder_sparse_step": 2}, [0, 2, 1]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [3, 0, 3]),
    ],
)
def test_dense_and_sparse_blocks_stay_what_they_are(options: dict[str, Any], order: list[int]) -> None:
    stack, inputs = based(qwen3_moe(**options))
    model, edit = apply(stack, Plan(({"order": order},)), inputs)
    assert kinds(model) == "".join(kinds(stack.model)[k] for k in order)
    assert edit.order == tuple(order)


def test_a_threshold_of_dense_blocks_moves(tmp_path: Any) -> None:
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
        vocab_size=40, first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    stack, inputs = based(transformers.DeepseekV3ForCausalLM(config))
    model, _ = apply(stack, Plan(({"drop": [0]},)), inputs)
    assert model.config.first_k_dense_replace == 1 or model.config.mlp_layer_types[:2] == ["dense", "sparse"]
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_kinds_of_attention_follow_their_source_and_not_the_pattern() -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**(SIZES | {"num_hidden_layers": 7}), sliding_window=4)
    stack, inputs = based(transformers.Gemma3ForCausalLM(config))
    types = list(stack.model.config.layer_types)
    assert types.index("full_attention") == 5
    model, _ = apply(stack, Plan(({"order": [0, 5, 6]},)), inputs)
    assert model.config.layer_types == [types[0], "full_attention", types[6]]


def test_a_list_that_nothing_shows_to_go_by_block_is_reported_and_left() -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, colours=["r", "g", "b", "y"]))
    stack, inputs = based(model)
    new, edit = apply(stack, Plan(({"drop": [1]},)), inputs)
    assert new.config.colours == ["r", "g", "b", "y"]
    assert any("colours is a list of 4" in note for note in edit.notes)


def test_numbers_that_may_be_of_blocks_are_reported_and_left() -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tapped_layers=[1, 3], eos_token_id=[1, 3]))
    stack, inputs = based(model)
    new, edit = apply(stack, Plan(({"drop": [1]},)), inputs)
    assert new.config.tapped_layers == [1, 3]
    (note,) = edit.notes
    assert "tapped_layers is [1, 3], which may be numbers of blocks" in note


def test_what_depends_on_the_place_of_a_block_is_refused() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=4, n_head=2, vocab_size=40, n_positions=32, scale_attn_by_inverse_layer_idx=True
    )
    stack, inputs = based(transformers.GPT2LMHeadModel(config))
    with pytest.raises(UserError, match=r"no value of scale_attn_by_inverse_layer_idx makes .* would be"):
        apply(stack, Plan(({"drop": [0]},)), inputs)


def test_a_nested_configuration_is_found() -> None:
    torch.manual_seed(0)
    text = transformers.Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    stack, inputs = based(transformers.LlavaForConditionalGeneration(config))
    model, _ = apply(stack, Plan(({"drop": [1, 2]},)), inputs)
    assert model.config.text_config.num_hidden_layers == 2
    assert model.config.vision_config.num_hidden_layers == 4
    model, _ = apply(stack, Plan(({"keep": [1]},)), inputs)
    assert model.config.text_config.num_hidden_layers == 1


def test_one_block_is_a_tower_too() -> None:
    stack, inputs = based(qwen3_moe(mlp_only_layers=[3]))
    model, edit = apply(stack, Plan(({"keep": [3]},)), inputs)
    assert edit.order == (3,)
    assert kinds(model) == "d"


def test_the_base_is_another_for_other_weights() -> None:
    stack, inputs = based(qwen3_moe())
    first = LiveBase(stack, inputs).fingerprint()
    with torch.no_grad():
        stack.blocks[0].self_attn.q_proj.weight[0, 0] += 1
    assert LiveBase(stack, inputs).fingerprint() != first


def test_models_of_one_configuration_are_asked_once_and_others_on_their_own() -> None:
    def config_of(**options: Any) -> Any:
        return LiveBase(*based(qwen3_moe(**options))).config

    first = config_of()
    assert config_of() is first
    assert config_of(decoder_sparse_step=2) is not first
    assert config_of(attn_implementation="eager") is not first


def test_what_is_remembered_of_a_configuration_is_not_changed_by_who_asks() -> None:
    config = LiveBase(*based(qwen3_moe(mlp_only_layers=[0]))).config
    assert config is not None
    entries, _ = config.of([1, 2], {"hidden_size": 32})
    entries["mlp_only_layers"].append(9)
    again, _ = config.of([1, 2])
    assert again["mlp_only_layers"] == []
    assert again["hidden_size"] == 16
    same, _ = config.of(range(4))
    same["mlp_only_layers"].append(9)
    assert config.entries["mlp_only_layers"] == [0]
