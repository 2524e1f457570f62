"""Tiny models whose configurations speak of single blocks in unusual ways: patterns, periods, thresholds, numbers.

What cannot be used here, with transformers 5.23 on a CPU: Gemma 3n runs, but its stream has an axis in front of the
batch, so that no tower is found in memory; its files are reshaped nevertheless. The vision tower of Qwen3-VL takes its
patches without a batch, so that it, too, is reshaped on disk. Gemma 4 shares keys and values only where hidden states
are asked for, as long as it has no embeddings by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from zoo import language_model, token_ids

from layerwright.core.load import quietly

Odd = tuple[nn.Module, dict[str, Tensor]]
# Special tokens are within the vocabulary, and never among those that are read.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
STATE = {"mamba_d_state": 4}


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": token_ids(2, 10).clamp_min(1)}


def _model(kind: str, name: str | None = None, depth: int | None = 4, **changes: Any) -> nn.Module:
    with quietly():
        return language_model(kind, name, **{"num_hidden_layers": depth, **SPECIAL, **changes})


ODD: dict[str, Callable[[], nn.Module]] = {
    # A pattern string, kept as a list; no entry is the depth.
    "nemotron-h": lambda: _model(
        "NemotronH", depth=None, hybrid_override_pattern="M*M*-E", **HEADS, ssm_state_size=4, mamba_num_heads=2,
        mamba_head_dim=16, n_groups=1, chunk_size=4, n_routed_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=8, moe_shared_expert_intermediate_size=8,
    ),
    # Two periods, each with an offset.
    "jamba": lambda: _model(
        "Jamba", depth=6, **GROUPED, **STATE, attn_layer_period=3, attn_layer_offset=2, expert_layer_period=2,
        expert_layer_offset=1, num_experts=3, mamba_dt_rank=2,
    ),
    # Kinds by block, of which one shares its weights with the others of its kind, and has a part for each of them.
    "zamba2": lambda: _model(
        "Zamba2", depth=5, **GROUPED, **STATE, layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "hybrid"],
        n_mamba_heads=2, chunk_size=4, num_mem_blocks=2, use_mem_rope=True,
    ),
    "bamba": lambda: _model(
        "Bamba", **GROUPED, **STATE, attn_layer_indices=[1, 3], mamba_n_heads=4, mamba_d_head=8, mamba_chunk_size=4
    ),
    # Every third block has no rotary embedding, and by that another kind of attention.
    "smollm3": lambda: _model(
        "SmolLM3", **GROUPED, no_rope_layer_interval=3, use_sliding_window=True, sliding_window=4
    ),
    "llama4": lambda: _model(
        "Llama4Text", "Llama4ForCausalLM", **HEADS, intermediate_size_mlp=24, num_local_experts=3,
        interleave_moe_layer_step=2, no_rope_layer_interval=3, attention_chunk_size=8,
    ),
    "qwen2-moe": lambda: _model(
        "Qwen2Moe", **GROUPED, **EXPERTS, shared_expert_intermediate_size=8, decoder_sparse_step=2, mlp_only_layers=[3]
    ),
    "qwen3-moe": lambda: _model("Qwen3Moe", **HEADS, **EXPERTS, decoder_sparse_step=2),
    "qwen3-next": lambda: _model(
        "Qwen3Next", **HEADS, **EXPERTS, shared_expert_intermediate_size=8, mlp_only_layers=[1],
        full_attention_interval=2, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "deepseek-v3": lambda: _model("DeepseekV3", **GROUPED, **LATENT, first_k_dense_replace=2),
    # The last blocks take keys and values from the last before them of their kind; settings under blocks' numbers.
    "gemma4": lambda: _gemma4(hidden_size_per_layer_input=0, output_hidden_states=True),
    "mllama": lambda: _model(
        "MllamaText", "MllamaForCausalLM", depth=5, **GROUPED, cross_attention_layers=[1, 3], rope_parameters=ROPE
    ),
}  # fmt: skip


def _gemma4(**changes: Any) -> nn.Module:
    return _model(
        "Gemma4Text", "Gemma4ForCausalLM", depth=6, **HEADS, layer_types=["sliding_attention", "full_attention"] * 3,
        sliding_window=4, global_head_dim=12, num_kv_shared_layers=2, use_double_wide_mlp=True,
        vocab_size_per_layer_input=40, **changes,
    )  # fmt: skip


def odd(name: str) -> Odd:
    """One of the models above, its vectors random too so that no norm is trivial, and what it reads."""
    inputs = _tokens()
    if name == "mllama":
        inputs["cross_attention_states"] = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    return shaken(ODD[name]()), inputs


def shaken(model: nn.Module) -> nn.Module:
    """The model in evaluation, with noise on every vector of its weights."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.eval()


# Models with weights outside the tower that belong to single blocks


def embedded_by_block() -> Odd:
    """A Gemma 4 with an embedding for each block in one table."""
    return shaken(_gemma4(hidden_size_per_layer_input=4)), _tokens()


def streams_beside() -> Odd:
    """A Gemma 3n: four streams, lists of sizes and of sparsities by block, an embedding for each block in one table."""
    model = _model(
        "Gemma3nText", "Gemma3nForCausalLM", depth=5, **HEADS, num_kv_shared_layers=2, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"],
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.25, 0.0], intermediate_size=[24, 24, 24, 32, 32],
        vocab_size_per_layer_input=40, hidden_size_per_layer_input=4, laurel_rank=2,
    )  # fmt: skip
    return shaken(model), _tokens()


def tapped_vision() -> Odd:
    """A Qwen3-VL that sees two images; blocks 0 and 2 of its vision tower each feed a block of the language model."""
    vision = {
        "depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 1, "out_hidden_size": 16, "num_position_embeddings": 16,
        "deepstack_visual_indexes": (0, 2), "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, **HEADS, "intermediate_size": 24,
        "vocab_size": 40, "initializer_range": 0.2, "rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}, **SPECIAL,
    }  # fmt: skip
    special = {"image_token_id": 39, "video_token_id": 38, "vision_start_token_id": 37, "vision_end_token_id": 36}
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **special)
    tokens = torch.tensor([[5, 37, 39, 39, 39, 39, 36, 7, 8, 9]] * 2)
    inputs = {
        "input_ids": tokens,
        "pixel_values": torch.randn(32, 48, generator=torch.Generator().manual_seed(3)),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
        "mm_token_type_ids": (tokens == 39).long(),
    }
    with quietly():
        return shaken(transformers.Qwen3VLForConditionalGeneration(config)), inputs
