"""Probabilities of attention, fused or written out, equal those that the definition and the models themselves give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from inside import attention, padded
from torch import Tensor
from zoo import ZOO, gpt2, language_model, llama, token_ids, vectors

from layerwright.core import inside as module
from layerwright.core.attention import AttentionWatch, self_attention

GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
MODELS = {
    "llama": lambda **more: llama(**(GROUPED | more)),
    "gpt2": gpt2,
    "bert": lambda **more: language_model("Bert", "BertForMaskedLM", **more),
    "gemma2": lambda **more: language_model("Gemma2", **(GROUPED | more), attn_logit_softcapping=2.0, sliding_window=5),
    "mixtral": lambda **more: language_model("Mixtral", **(GROUPED | more), num_local_experts=3),
}


def naive(q: Tensor, k: Tensor, scale: float, seen: Any, bias: Any = lambda h, t, s: 0.0) -> Tensor:
    """By loops over heads, tokens and keys."""
    found = torch.zeros(*q.shape[:-1], k.shape[-2])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h * k.shape[1] // q.shape[1]
            for t in range(q.shape[2]):
                keys = [s for s in range(k.shape[2]) if seen(t, s)]
                weights = [math.exp(scale * float(q[b, h, t] @ k[b, kv, s]) + bias(h, t, s)) for s in keys]
                for s, weight in zip(keys, weights):
                    found[b, h, t, s] = weight / sum(weights)
    return found


@pytest.mark.parametrize("kind", ["plain", "causal", "scale", "bool mask", "float mask", "grouped"])
def test_the_fused_call_by_loops(kind: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2 if kind == "grouped" else 4, 5, 8)
    near = (torch.arange(5)[:, None] - torch.arange(5)).abs() < 2
    slope = torch.randn(4, 5, 5)
    options: dict[str, dict[str, Any]] = {
        "causal": {"is_causal": True}, "scale": {"scale": 0.7}, "bool mask": {"attn_mask": near},
        "float mask": {"attn_mask": slope}, "grouped": {"enable_gqa": True},
    }  # fmt: skip
    with AttentionWatch() as watch:
        F.scaled_dot_product_attention(q, k, k, **options.get(kind, {}))
    (call,) = watch.calls.values()
    seen = {"causal": lambda t, s: s <= t, "bool mask": lambda t, s: bool(near[t, s])}.get(kind, lambda t, s: True)
    bias = (lambda h, t, s: float(slope[h, t, s])) if kind == "float mask" else (lambda h, t, s: 0.0)
    expected = naive(q, k, 0.7 if kind == "scale" else 8**-0.5, seen, bias)
    torch.testing.assert_close(call.probabilities(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(call.probabilities(slice(1, 2)), expected[1:], rtol=1e-5, atol=1e-6)


def test_a_softmax_over_another_axis_or_of_no_product_is_no_attention() -> None:
    x = vectors(2, 3, 3)
    with AttentionWatch() as watch:
        (x @ x).softmax(-2)
        x.softmax(-1)
    assert not watch.calls


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["eager", "sdpa"])
def test_they_are_those_that_the_model_returns(name: str, way: str) -> None:
    if (name, way) == ("gemma2", "sdpa"):
        way = "eager"  # the fused call has no cap, so that transformers leaves it away
    model = MODELS[name](attn_implementation="eager").eval()
    inputs = padded(token_ids(), [12, 9, 5])
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(way)
    found = attention(model, inputs)
    assert len(found) == len(expected) == 3
    real = inputs["attention_mask"].bool()
    for mine, theirs in zip(found, expected):
        torch.testing.assert_close(mine, theirs * real[:, None, :, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["nn.TransformerEncoder", "nn.TransformerEncoder, norm first"])
def test_of_torch_own_layers(name: str) -> None:
    model, x, _ = ZOO[name]()
    expected: list[Tensor] = []
    with torch.no_grad():
        for layer in model.eval().layers:
            y = layer.norm1(x) if layer.norm_first else x
            expected.append(layer.self_attn(y, y, y, average_attn_weights=False)[1])
            x = layer(x)
    for mine, theirs in zip(attention(model, ZOO[name]()[1]), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left: bool) -> None:
    model, ids = llama(), token_ids()
    lengths = [12, 9, 5]
    found = attention(model, padded(ids, lengths, left))
    for b, n in enumerate(lengths):
        kept = slice(12 - n, 12) if left else slice(0, n)
        alone = attention(model, {"input_ids": ids[b : b + 1, kept]})
        for mine, expected in zip(found, alone):
            torch.testing.assert_close(mine[b, :, kept, kept], expected[0], rtol=1e-4, atol=1e-6)
            assert mine[b].sum() == pytest.approx(2 * n, rel=1e-5)  # all the rest is zero


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "t5 encoder"])
def test_half_precision_gives_float32_rows_that_sum_to_one(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    model.to(torch.bfloat16)
    inputs = {key: x.to(torch.bfloat16) if x.is_floating_point() else x for key, x in inputs.items()}
    for found in attention(model, inputs, expected.blocks):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=1e-5, atol=0.0)


def test_of_a_decoder_only_its_own_stream_counts() -> None:
    """Also where the encoder has as many tokens."""
    model = transformers.T5ForConditionalGeneration(ZOO["t5 decoder"]()[0].config).eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids(seed=2)}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).decoder_attentions
    for mine, theirs in zip(attention(model, inputs, "decoder.block"), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mamba", "convnext", "nn.Sequential", "swin"])
def test_blocks_without_attention_from_every_token_to_every_token_give_nothing(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    assert attention(model, inputs, expected.blocks) == []


def test_a_few_sequences_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    whole = attention(model, inputs)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 12 * 12)
    for mine, expected in zip(attention(model, inputs), whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_the_graph_holds_no_tensors() -> None:
    """It is there to tell whose keys depend on the stream; with tensors it would be the largest thing of all."""

    def block(x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(x, x.exp(), x)  # the graph asks to keep the exponential

    (call,) = self_attention(block, vectors(2, 6, 8))
    assert call.key.grad_fn is not None
    with pytest.raises(TypeError, match="NoneType"):
        _ = call.key.grad_fn._saved_result  # type: ignore[attr-defined]
