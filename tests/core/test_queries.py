"""What makes the queries of a block, and the temperature of attention that is folded into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from reshaping import answer, close, deep_llama, prepared
from thinned import thinned
from torch import Tensor, nn
from zoo import gpt2, language_model, llama, token_ids, vectors

import layerwright as lw
from layerwright.core.anatomy import Anatomy
from layerwright.core.edit import apply, apply_stored
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan
from layerwright.core.queries import Piece
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack

MODELS = ["llama", "gpt2", "opt", "qwen3", "gemma2", "gemma3", "gpt-neox", "phi", "bert", "vit"]
OTHERS = ["mixtral", "olmo2", "granite", "albert", "nn.TransformerEncoder", "nn.TransformerEncoder, norm first"]
TAUS = [0.5, 1.7, 3.0]
FUSED = tuple(row % 24 < 8 for row in range(48))  # two heads, each with its query, key and value
FIRST = (True,) * 16 + (False,) * 32


def fold(temperature: Any) -> Plan:
    return Plan(({"fold": {"temperature": temperature}},))


def folded(stack: Stack, inputs: Any, temperature: Any) -> nn.Module:
    return apply(stack, fold(temperature), inputs)[0]


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Stack, Any]:
    stack, inputs = prepared(name)
    with quietly():
        stack.model.to(dtype).save_pretrained(folder)
    return stack, inputs


@contextmanager
def divided(stack: Stack, taus: Sequence[float]) -> Iterator[None]:
    """Divide the scores that the k-th fused call of attention computes; where it is written out, the modules' scale."""
    real, left, fast = F.scaled_dot_product_attention, list(taus), torch.backends.mha.get_fastpath_enabled()

    def other(query: Tensor, *args: Any, scale: float | None = None, **kwargs: Any) -> Tensor:
        return real(query, *args, scale=(scale or query.shape[-1] ** -0.5) / left.pop(0), **kwargs)

    written_out = [m for m in stack.model.modules() if type(m).__name__ == "Gemma2Attention"]
    for module, tau in zip(written_out, taus):
        module.scaling /= tau
    F.scaled_dot_product_attention = other
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, tau in zip(written_out, taus):
            module.scaling *= tau
    assert written_out or not left


# The function


@pytest.mark.parametrize("name", MODELS + OTHERS)
def test_the_folded_model_is_the_model_whose_scores_are_divided(name: str) -> None:
    stack, inputs = prepared(name)
    taus = [0.6] * stack.depth if name == "albert" else TAUS  # one block cannot differ from run to run
    new = folded(stack, inputs, taus)
    with divided(stack, taus):
        wanted = answer(stack.model, inputs)
    assert close(answer(new, inputs), wanted)
    assert not close(wanted, answer(stack.model, inputs), 1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_temperature_one_changes_nothing(name: str) -> None:
    stack, inputs = prepared(name)
    model, edit = apply(stack, fold(1), inputs)
    assert torch.equal(answer(model, inputs), answer(stack.model, inputs))
    assert all(torch.equal(value, stack.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert all(sources == (key,) for key, sources in edit.provenance.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_temperature_and_its_inverse_give_the_base_back(name: str) -> None:
    stack, inputs = prepared(name)
    plan = Plan(({"fold": {"temperature": 0.7}}, {"fold": {"temperature": 1 / 0.7}}))
    model, _ = apply(stack, plan, inputs)
    assert all(close(value, stack.model.state_dict()[key], 1e-6) for key, value in model.state_dict().items())
    assert close(answer(model, inputs), answer(stack.model, inputs))


@pytest.mark.parametrize("name", thinned(2, MODELS))
def test_the_folder_holds_what_memory_would(name: str, tmp_path: Path) -> None:
    stack, inputs = saved(name, tmp_path / "base")
    (tmp_path / "new").mkdir()
    skeleton, _, _ = Skeleton.load(tmp_path / "base")
    if name == "vit":  # its files have other names than the model
        with pytest.raises(NeedsModel, match="needs the loaded model"):
            apply_stored(skeleton, fold(TAUS), tmp_path / "new")
        return
    apply_stored(skeleton, fold(TAUS), tmp_path / "new")
    model, _, _ = load_model(tmp_path / "new")
    assert torch.equal(answer(model, inputs), answer(folded(stack, inputs, TAUS), inputs))


def test_a_half_precision_folder_holds_what_memory_would(tmp_path: Path) -> None:
    _, inputs = saved("gemma3", tmp_path / "base", torch.bfloat16)
    (tmp_path / "new").mkdir()
    stack = Stack.find(load_model(tmp_path / "base")[0], inputs)
    apply_stored(Skeleton.load(tmp_path / "base")[0], fold(0.8), tmp_path / "new")
    model, _, _ = load_model(tmp_path / "new")
    assert torch.equal(answer(model, inputs), answer(folded(stack, inputs, 0.8), inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_a_folded_model_climbs_to_reload(name: str, tmp_path: Path) -> None:
    stack, inputs = saved(name, tmp_path / "base")
    _, live = lw.reshape(stack.model, fold(0.8), inputs, until="reload")
    assert live.ladder.ok, live.ladder.lines()
    stored = lw.reshape(tmp_path / "base", fold(0.8), out=tmp_path / "new", until="reload")
    assert stored[1].ladder.ok, stored[1].ladder.lines()


# What is found


@pytest.mark.parametrize(
    "name, pieces",
    [
        ("llama", [Piece("self_attn.q_proj.weight", 0, None)]),
        ("opt", [Piece("self_attn.q_proj.bias", 0, None), Piece("self_attn.q_proj.weight", 0, None)]),
        ("gpt2", [Piece("attn.c_attn.bias", 0, FIRST), Piece("attn.c_attn.weight", 1, FIRST)]),
        (
            "gpt-neox",
            [Piece("attention.query_key_value.bias", 0, FUSED), Piece("attention.query_key_value.weight", 0, FUSED)],
        ),
        ("qwen3", [Piece("self_attn.q_norm.weight", 0, None)]),
        ("gemma3", [Piece("self_attn.q_norm.weight", 0, None, neutral=0.0)]),
        (
            "nn.TransformerEncoder",
            [Piece("self_attn.in_proj_bias", 0, FIRST), Piece("self_attn.in_proj_weight", 0, FIRST)],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_pieces_that_make_queries_are_found_in_every_precision(
    name: str, pieces: list[Piece], dtype: torch.dtype
) -> None:
    stack, inputs = prepared(name)
    stack.model.to(dtype)
    inputs = inputs if isinstance(inputs, dict) else inputs.to(dtype)
    before = {key: value.clone() for key, value in stack.model.state_dict().items()}
    assert sorted(Anatomy(stack, inputs).queries(1), key=lambda p: p.name) == pieces
    assert all(torch.equal(value, before[key]) for key, value in stack.model.state_dict().items())
    assert all(p.requires_grad for p in stack.model.parameters())


def test_a_bias_that_is_zero_in_the_first_block_counts() -> None:
    model = gpt2().eval()  # its biases start at zero
    inputs = {"input_ids": token_ids()}
    with torch.no_grad():
        model.transformer.h[2].attn.c_attn.bias.normal_()
    stack = Stack.find(model, inputs)
    new = folded(stack, inputs, TAUS)
    with divided(stack, TAUS):
        wanted = answer(model, inputs)
    assert close(answer(new, inputs), wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_that_is_written_out_is_seen(kind: str) -> None:
    model = {"llama": llama, "gpt2": gpt2}[kind](attn_implementation="eager").eval()
    inputs = {"input_ids": token_ids()}
    new = folded(Stack.find(model, inputs), inputs, TAUS)
    model.set_attn_implementation("sdpa")
    with divided(Stack.find(model, inputs), TAUS):
        wanted = answer(model, inputs)
    assert close(answer(new, inputs), wanted)


def test_of_a_decoder_that_reads_an_encoder_only_self_attention_is_divided() -> None:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    config = transformers.BartConfig(vocab_size=40, d_model=16, init_std=0.2, **sizes)
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config).eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=10, seed=2)}
    stack = Stack.find(model, inputs, "model.decoder.layers")
    new = folded(stack, inputs, 0.5)
    assert {p.name for p in Anatomy(stack, inputs).queries(0)} == {f"self_attn.q_proj.{n}" for n in ("weight", "bias")}
    for block in stack.blocks:
        block.self_attn.scaling /= 0.5
    assert close(answer(new, inputs), answer(model, inputs))


def test_queries_of_low_rank_are_divided_once() -> None:
    model = language_model(
        "DeepseekV3", q_lora_rank=6, kv_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, moe_intermediate_size=8,
        first_k_dense_replace=3, num_key_value_heads=2,
    ).eval()  # fmt: skip
    inputs = {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    assert Anatomy(stack, inputs).queries(0) == (Piece("self_attn.q_b_proj.weight", 0, None),)


def test_a_norm_of_every_head_counts() -> None:
    model = language_model("StableLm", num_attention_heads=8, num_key_value_heads=8, qk_layernorm=True).eval()
    inputs = {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    norms = {f"self_attn.q_layernorm.norms.{head}.weight" for head in range(8)}
    assert {piece.name for piece in Anatomy(stack, inputs).queries(0)} == norms
    new = folded(stack, inputs, TAUS)
    with divided(stack, TAUS):
        wanted = answer(model, inputs)
    assert close(answer(new, inputs), wanted)


class Shared(nn.Module):
    """x + softmax(x W Wᵀ xᵀ) x, whose queries are its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.w(x)
        return x + F.scaled_dot_product_attention(q, q, x)


class Busy(nn.Module):
    """x + softmax(q xᵀ) x + q, whose queries go to the stream as well."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.w(x)
        return x + torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, x).softmax(-1), x) + q


@pytest.mark.parametrize("block, words", [(Shared, "and its keys are not"), (Busy, "for something else too")])
def test_queries_that_nothing_divides_alone_are_refused(block: type[nn.Module], words: str) -> None:
    torch.manual_seed(0)
    x = vectors(2, 6, 8)
    stack = Stack.find(nn.Sequential(*(block() for _ in range(3))), x)
    with pytest.raises(UserError, match=words):
        Anatomy(stack, x).queries(0)


# Beside other steps


def test_a_loop_that_shares_its_weights_goes_on_sharing_them_at_one_temperature() -> None:
    stack, inputs = prepared("opt")
    loop = {"loop": {"blocks": [1], "times": 2, "share": "weights"}}
    one, _ = apply(stack, Plan((loop, {"fold": {"temperature": 0.5}})), inputs)
    two, _ = apply(stack, Plan((loop, {"fold": {"temperature": [0.5, 0.5, 2.0, 0.5]}})), inputs)
    first, second = ([b.self_attn for b in model.model.decoder.layers[1:3]] for model in (one, two))
    assert first[0].q_proj.weight is first[1].q_proj.weight
    assert first[0].q_proj.bias is first[1].q_proj.bias
    assert torch.equal(second[0].q_proj.weight, 4 * second[1].q_proj.weight)
    assert second[0].k_proj.weight is second[1].k_proj.weight


def test_joined_blocks_are_divided_like_others() -> None:
    stack, inputs = deep_llama()
    plans = [Plan(steps) for steps in (
        ({"parallel": 2}, {"fold": {"temperature": 0.5}}), ({"fold": {"temperature": 0.5}}, {"parallel": 2})
    )]  # fmt: skip
    first, second = (apply(stack, plan, inputs)[0] for plan in plans)
    assert close(answer(first, inputs), answer(second, inputs), 1e-6)


# Bad input


@pytest.mark.parametrize(
    "options, words",
    [
        ({"temperature": 0}, "got temperature 0; expected a number larger than 0"),
        ({"temperature": -0.5}, "got temperature -0.5; expected a number larger than 0"),
        ({"temperature": float("nan")}, "got temperature nan"),
        ({"temperature": "warm"}, "got temperature 'warm'"),
        ({"temperature": True}, "got temperature True"),
        ({"temperature": [0.5, 1.0, 0]}, "got temperature 0"),
        ({"temperature": [0.5, 2.0]}, r"got temperature \[0.5, 2.0\]; expected a list of 3 numbers, one a block"),
        ({"temperature": 0.5, "scale": [1.0] * 3}, "expected one of .* or temperature"),
        ({"temperature": 0.5, "norms": True}, "expected one of .* or temperature"),
    ],
)
def test_temperatures_that_are_none_are_named(options: dict[str, Any], words: str) -> None:
    stack, inputs = prepared("llama")
    with pytest.raises(UserError, match=f"step fold: {words}") as caught:
        apply(stack, Plan(({"fold": options},)), inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nn.Sequential", "convnext", "mamba"])
def test_blocks_without_attention_have_no_temperature(name: str) -> None:
    stack, inputs = prepared(name)
    with pytest.raises(UserError, match=r"step fold: block 0 \(.*\) shows no attention to its own stream"):
        folded(stack, inputs, 0.5)


@pytest.mark.parametrize("name", ["bloom", "t5 encoder", "t5 decoder", "swin"])
def test_scores_with_a_bias_by_position_are_refused(name: str) -> None:
    stack, inputs = prepared(name)
    with pytest.raises(UserError, match="adds a bias to the scores"):
        folded(stack, inputs, 0.5)


def test_one_block_that_runs_often_cannot_have_several_temperatures() -> None:
    stack, inputs = prepared("albert")
    with pytest.raises(UserError, match="cannot differ from run to run"):
        folded(stack, inputs, [0.5, 0.5, 1.0, 1.0])


def test_fused_weights_are_folded_before_they_are_widened() -> None:
    stack, inputs = prepared("gpt2")
    steps = ({"grow": {"width": 2}}, {"fold": {"temperature": 0.5}})
    with pytest.raises(UserError, match=r"c_attn\.\w+ has another shape than in the base; fold before"):
        apply(stack, Plan(steps), inputs)
    apply(stack, Plan(steps[::-1]), inputs)
