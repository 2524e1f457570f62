"""Growth in width: copies compute the same, zeros nearly, and what is new stands where it should."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reshaping import answer, close, prepared
from thinned import thinned
from torch import Tensor

from layerwright.core.base import LiveBase
from layerwright.core.edit import apply, apply_stored
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.frame import container_of
from layerwright.core.inputs import call
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan
from layerwright.core.rungs.answers import preserved
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.steps import grow
from layerwright.core.trace import first_tensor
from layerwright.core.wider import widening
from layerwright.maths.growth import cornered, repeated

PRESERVES = grow.PRESERVES["width"]
# Norms that take no mean away, and those that do.
RMS = ["llama", "qwen3", "gemma2", "gemma3", "mixtral", "olmo2", "granite", "mamba"]
LAYER = ["gpt2", "opt", "gpt-neox", "phi", "bert", "vit"]
CACHED = ["llama", "qwen3", "gemma3", "mixtral", "gpt2"]


def grown(name: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    stack, inputs = prepared(name)
    model, edit = apply(stack, Plan(({"grow": {"width": 2} | options},)), inputs)
    return model, stack, inputs, edit


def apart(model: Any, stack: Any, inputs: Any) -> float:
    wanted = answer(stack.model, inputs)
    return float((answer(model, inputs) - wanted).norm() / wanted.norm())


# Copies


@pytest.mark.parametrize("name", thinned(3, [*RMS, *LAYER, "own wrapper"]))
def test_copies_side_by_side_change_nothing(name: str) -> None:
    model, stack, inputs, edit = grown(name)
    assert edit.order == (0, 1, 2)
    assert close(answer(model, inputs), answer(stack.model, inputs))
    assert Stack.find(model, inputs, stack.tower.path).width == 2 * stack.width
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, stack.model)]
    assert sizes[0] > 3 * sizes[1]


@pytest.mark.parametrize(
    "name, wider",
    [
        ("llama", {"hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"}),
        ("gpt2", {"n_embd", "n_head"}),
        ("opt", {"hidden_size", "word_embed_proj_dim", "num_attention_heads", "ffn_dim"}),
        ("mixtral", {"hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"}),
        ("vit", {"hidden_size", "num_attention_heads", "intermediate_size"}),
        ("mamba", {"hidden_size", "intermediate_size"}),
    ],
)
def test_heads_and_hidden_units_go_with_the_stream_and_experts_do_not(name: str, wider: set[str]) -> None:
    model, stack, _, _ = grown(name)
    before, after = stack.model.config.to_dict(), model.config.to_dict()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == wider
    assert all(after[key] == 2 * before[key] for key in wider)


def test_three_times_as_wide_is_as_exact() -> None:
    model, stack, inputs, _ = grown("gemma3", width=3)
    assert model.config.hidden_size == 48
    assert close(answer(model, inputs), answer(stack.model, inputs))


def test_a_weight_is_what_the_formula_says() -> None:
    model, stack, _, edit = grown("llama")
    old, new = stack.model.state_dict(), model.state_dict()
    up = old["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(new["model.layers.1.mlp.up_proj.weight"], up.repeat(2, 2) / 2)
    assert torch.equal(new["model.embed_tokens.weight"], old["model.embed_tokens.weight"].repeat(1, 2))
    assert torch.equal(new["model.norm.weight"], old["model.norm.weight"].repeat(2))
    assert edit.provenance["lm_head.weight"] == ("lm_head.weight",)


def tiny(kind: str, **options: Any) -> tuple[Any, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 64, "initializer_range": 0.2,
             "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes | options))
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    return Stack.find(model.eval(), inputs), inputs


@pytest.mark.parametrize("kind", ["Llama", "Phi3", "Starcoder2", "Cohere"])
def test_grouped_heads_and_joined_matrices_are_told_apart(kind: str) -> None:
    stack, inputs = tiny(kind)
    model, _ = apply(stack, Plan(({"grow": {"width": 2}},)), inputs)
    assert model.config.num_key_value_heads == 4
    assert close(answer(model, inputs), answer(stack.model, inputs))


def test_the_parts_of_a_joined_matrix_are_found() -> None:
    stack, inputs = tiny("Phi3")
    base = LiveBase(stack, inputs)
    assert base.config is not None
    found = widening(stack.model, base.config, container_of(stack)[0], 32, 2)
    half, quarter = Fraction(1, 2), Fraction(1, 4)
    assert found.blocks[0]["self_attn.qkv_proj.weight"].axes[0] == (half, quarter, quarter)
    assert found.blocks[0]["mlp.gate_up_proj.weight"].axes[0] == (half, half)


@pytest.mark.parametrize("name", CACHED)
def test_cached_decoding_is_the_full_forward(name: str) -> None:
    model, _, inputs, _ = grown(name)
    ids = inputs["input_ids"]
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        before = model(ids[:, :-3], use_cache=True)
        rest = model(ids[:, -3:], past_key_values=before.past_key_values).logits
    assert (rest - full[:, -3:]).abs().max() <= 1e-5 * full.abs().max().clamp_min(1)


@pytest.mark.parametrize("name, by", thinned(2, ["llama", "gemma3", "gpt2", "mixtral"], PRESERVES))
def test_what_is_saved_is_what_was_in_memory(name: str, by: str, tmp_path: Path) -> None:
    model, _, inputs, _ = grown(name, by=by)
    with quietly():
        model.save_pretrained(tmp_path)
    assert torch.equal(answer(load_model(tmp_path)[0], inputs), answer(model, inputs))


@pytest.mark.parametrize("name, by", thinned(2, ["llama", "gemma3", "gpt2", "opt"], PRESERVES))
def test_the_folder_holds_what_memory_would(name: str, by: str, tmp_path: Path) -> None:
    model, stack, inputs, edit = grown(name, by=by, depth=2)
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    stored = apply_stored(Skeleton.load(tmp_path / "base")[0], edit.plan, tmp_path / "new")
    assert stored.order == edit.order
    assert torch.equal(answer(load_model(tmp_path / "new")[0], inputs), answer(model, inputs))


def test_blocks_that_share_weights_go_on_sharing_them() -> None:
    stack, inputs = prepared("llama")
    for by in PRESERVES:
        plan = Plan(({"loop": {"blocks": [1], "times": 2, "share": "weights"}}, {"grow": {"width": 2, "by": by}}))
        model, _ = apply(stack, plan, inputs)
        assert model.model.layers[1].mlp.up_proj.weight is model.model.layers[2].mlp.up_proj.weight
    wanted, _ = apply(stack, Plan(({"order": [0, 1, 1, 2]}, {"grow": {"width": 2}})), inputs)
    again, _ = apply(stack, Plan((plan.steps[0], {"grow": {"width": 2}})), inputs)
    assert torch.equal(answer(again, inputs), answer(wanted, inputs))


def test_other_steps_follow() -> None:
    stack, inputs = prepared("llama")
    model, _ = apply(stack, Plan(({"grow": {"width": 2}}, {"insert": [0]}, {"fold": {"norms": True}})), inputs)
    assert model.config.num_hidden_layers == 4
    assert close(answer(model, inputs), answer(stack.model, inputs))


# Zeros and random numbers


@pytest.mark.parametrize("name", RMS)
def test_zeros_change_next_to_nothing_where_norms_take_no_mean_away(name: str) -> None:
    model, stack, inputs, _ = grown(name, by="zero")
    assert apart(model, stack, inputs) < 5e-3
    stream = Stack.find(model, inputs, stack.tower.path)
    state = stream_after(stream, inputs)
    assert state[..., :16].any()
    assert not state[..., 16:].any()


def stream_after(stack: Stack, inputs: Any) -> Tensor:
    states: list[Tensor] = []
    handle = stack.blocks[-1].register_forward_hook(lambda m, a, out: states.append(first_tensor(out)))  # type: ignore[arg-type]
    try:
        answer(stack.model, inputs)
    finally:
        handle.remove()
    return states[0]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_zeros_learn(name: str) -> None:
    model, _, inputs, _ = grown(name, by="zero")
    first_tensor(call(model, inputs)).square().sum().backward()  # type: ignore[union-attr]
    block = model.model.layers[0]
    assert not block.self_attn.o_proj.weight[16:, :16].any()
    assert block.self_attn.o_proj.weight.grad[16:, :16].any()
    assert model.get_input_embeddings().weight.grad[:, 16:].any()


@pytest.mark.parametrize("by", PRESERVES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_each_operator_says_of_the_function_is_measured(name: str, by: str) -> None:
    model, stack, inputs, _ = grown(name, by=by)
    with torch.no_grad():
        found = preserved(stack.model, model, inputs, step="grow", declared=PRESERVES[by])
    assert found.held == (PRESERVES[by] == "exact")
    if by == "zero":  # where a norm takes the mean away, zeros beside the stream move it
        assert (apart(model, stack, inputs) < 1e-3) == (name == "llama")


@pytest.mark.parametrize("by", ["zero", "random"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_old_numbers_stay_in_the_corner(name: str, by: str) -> None:
    model, stack, _, _ = grown(name, by=by)
    old, new = stack.model.state_dict(), model.state_dict()
    matrix = "model.layers.1.self_attn.o_proj.weight" if name == "llama" else "transformer.h.1.attn.c_proj.weight"
    assert torch.equal(new[matrix][:16, :16], old[matrix])
    outputs = new[matrix][16:, :16] if name == "llama" else new[matrix][:16, 16:]
    assert bool(outputs.any()) == (by == "random")
    if name == "gpt2":  # queries, keys and values lie one after the other, and each is in its own corner
        joined, wanted = new["transformer.h.1.attn.c_attn.weight"], old["transformer.h.1.attn.c_attn.weight"]
        assert all(torch.equal(joined[:16, 32 * k : 32 * k + 16], wanted[:, 16 * k : 16 * k + 16]) for k in range(3))


def test_new_numbers_are_as_the_class_starts_them_and_come_from_the_seed() -> None:
    stack, inputs = tiny("Llama", hidden_size=128, intermediate_size=256)
    plans = [Plan(({"grow": {"width": 2, "by": "random", "seed": seed}},)) for seed in (0, 0, 1)]
    first, again, other = (apply(stack, plan, inputs)[0].state_dict() for plan in plans)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"):
        fresh = first[name][:, 128:]
        assert abs(float(fresh.std()) / 0.2 - 1) < 0.05
        assert abs(float(fresh.mean())) < 0.02
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert torch.equal(first["model.norm.weight"][128:], torch.ones(128))
    up = [first[f"model.layers.{k}.mlp.up_proj.weight"][256:] for k in (0, 1)]
    assert not torch.equal(*up)


# Maths


def test_repeated_and_cornered_matrices_compute_what_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 4, generator=generator), torch.randn(4, generator=generator)
    parts = {0: [4, 2], 1: [4]}
    wide = repeated(weight, parts, 3, reads=1)
    out = weight @ x
    wanted = torch.cat([out[:4].repeat(3), out[4:].repeat(3)])
    assert torch.allclose(wide @ x.repeat(3), wanted, atol=1e-6)
    corner = cornered(weight, parts, 2, torch.zeros(12, 8))
    padded = torch.cat([x, torch.randn(4, generator=generator)])
    got = corner @ padded
    assert torch.allclose(got[:4], out[:4], atol=1e-6)
    assert torch.allclose(got[8:10], out[4:], atol=1e-6)
    assert not got[4:8].any()
    assert not got[10:].any()


# Bad input


@pytest.mark.parametrize(
    "name, steps, words",
    [
        ("bloom", ({"grow": {"width": 2}},), "found no entries of the configuration"),  # its slopes go by head
        ("nn.Sequential", ({"grow": {"width": 2}},), "only models whose class builds them from a configuration"),
        ("albert", ({"grow": {"width": 2}},), "runs several times"),
        ("llama", ({"widen": 2}, {"grow": {"width": 2}}), "grow in width before steps that widen.*step 2"),
        ("llama", ({"grow": {"width": 2}}, {"grow": {"width": 2}}), "grow in width before steps that widen.*step 2"),
        ("llama", ({"grow": {"width": 2}}, {"widen": 2}), "step 2"),
        ("llama", ({"grow": {"width": 1.5}},), "whole number"),
        ("convnext", ({"grow": {"width": 2}},), "found no entries of the configuration"),
    ],
)
def test_growth_that_cannot_be_done_says_why(name: str, steps: Any, words: str) -> None:
    stack, inputs = prepared(name)
    with pytest.raises(UserError, match=words):
        apply(stack, Plan(steps), inputs)


def test_two_steps_that_change_one_width_are_refused() -> None:
    stack, inputs = tiny("Llama")
    with pytest.raises(UserError, match="two of its steps change one width"):
        apply(stack, Plan(({"grow": {"width": 2}}, {"parallel": 2})), inputs)


def test_joined_files_need_the_model(tmp_path: Path) -> None:
    stack, _ = prepared("mixtral")
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    with pytest.raises(NeedsModel, match="a wider stream"):
        apply_stored(Skeleton.load(tmp_path / "base")[0], Plan(({"grow": {"width": 2}},)), tmp_path / "new")


def test_the_base_and_the_random_state_stay_as_they_are() -> None:
    stack, inputs = prepared("gemma3")
    before = {k: t.clone() for k, t in stack.model.state_dict().items()}
    scale, state = stack.model.model.embed_tokens.embed_scale.clone(), torch.random.get_rng_state()
    model, _ = apply(stack, Plan(({"grow": {"width": 2, "by": "random"}},)), inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[k]) for k, t in stack.model.state_dict().items())
    assert torch.equal(stack.model.model.embed_tokens.embed_scale, scale)
    assert torch.allclose(model.model.embed_tokens.embed_scale, scale * 2**0.5)
