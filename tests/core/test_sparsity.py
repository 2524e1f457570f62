"""PPL-p % sparsity: what is given is what a model with hooks of its own gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inside import padded
from naive import blocks_of
from torch import Tensor, nn
from zoo import ZOO, Residual, gpt2, language_model, llama, token_ids

from layerwright.core import sparsity as module
from layerwright.core.errors import UserError
from layerwright.core.sparsity import PerplexitySparsity, sparsity_at_perplexity
from layerwright.core.stack import Stack


def taught(model: nn.Module) -> nn.Module:
    """A model whose perplexity says something: the text is its own likeliest continuation, mostly."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def text(model: nn.Module, sequences: int = 4, tokens: int = 24) -> Tensor:
    """Drawn from the model itself."""
    torch.manual_seed(1)
    ids = token_ids(sequences, 1)
    with torch.no_grad():
        while ids.shape[1] < tokens:
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, (3 * logits).softmax(-1).multinomial(1)], dim=1)
    return ids


def matrices(model: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    mlps = [b.mlp for b in blocks_of(model)]
    return [(m.c_proj, m.c_proj.weight.T) if hasattr(m, "c_proj") else (m.down_proj, m.down_proj.weight) for m in mlps]


def naive(model: nn.Module, inputs: dict[str, Tensor], found: PerplexitySparsity) -> tuple[float, list[float]]:
    """Perplexity, and the share left out by block, of the thresholds that were found."""
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    shares: list[float] = []

    def hook(threshold: float, weight: Tensor) -> Callable[..., Any]:
        def before(m: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            small = args[0].abs() * weight.norm(dim=0) <= threshold
            shares.append(float(small[real].double().mean()))
            return (torch.where(small, 0.0, args[0]),)

        return before

    handles = [
        m.register_forward_pre_hook(hook(found.best.thresholds[k], weight.detach()))
        for k, (m, weight) in enumerate(matrices(model))
    ]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    nats = [
        -logits[b, t].log_softmax(-1)[inputs["input_ids"][b, t + 1]]
        for b in range(len(real)) for t in range(real.shape[1] - 1) if real[b, t] and real[b, t + 1]
    ]  # fmt: skip
    return math.exp(float(torch.stack(nats).double().mean())), shares


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("percent", [1.0, 10.0])
def test_the_final_numbers_are_measured(make: Any, percent: float) -> None:
    model = taught(make())
    inputs = padded(text(model), [24, 24, 15, 9])
    batches = [{name: x[part] for name, x in inputs.items()} for part in (slice(0, 3), slice(3, 4))]
    found = sparsity_at_perplexity(Stack.find(model, inputs), batches, percent)
    perplexity, shares = naive(model, inputs, found)
    assert found.best.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert list(found.best.shares.values()) == pytest.approx(shares, abs=1e-6)
    assert found.best.sparsity == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert 0 < found.best.sparsity < 1
    assert found.dense_perplexity < found.best.perplexity <= found.dense_perplexity * (1 + percent / 100)
    assert found.best in found.trials
    assert len(found.trials) <= 8


def test_the_rise_is_nearly_all_that_is_allowed() -> None:
    model = taught(llama())
    inputs = {"input_ids": text(model, 8, 32)}
    found = sparsity_at_perplexity(Stack.find(model, inputs), [inputs], 10.0)
    rise = math.log(found.best.perplexity / found.dense_perplexity)
    assert 0.9 * math.log(1.1) <= rise <= math.log(1.1)


def test_more_may_be_left_out_where_more_is_allowed() -> None:
    model = taught(gpt2())
    inputs = {"input_ids": text(model)}
    found = [sparsity_at_perplexity(Stack.find(model, inputs), [inputs], p).best for p in (0.5, 5.0, 50.0)]
    assert found[0].cett < found[1].cett < found[2].cett
    assert found[0].sparsity < found[1].sparsity < found[2].sparsity
    for k in range(3):
        assert found[0].thresholds[k] < found[1].thresholds[k] < found[2].thresholds[k]


def test_where_nothing_else_may_be_the_exact_zeros_of_relu_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = taught(language_model("OPT", ffn_dim=24, word_embed_proj_dim=16, init_std=0.2))
    inputs = {"input_ids": text(model)}
    monkeypatch.setattr(module, "_largest", lambda rise, allowed: 0.0)
    found = sparsity_at_perplexity(Stack.find(model, inputs), [inputs], 1.0)
    assert found.best.cett == 0.0
    assert found.best.sparsity > 0.2
    assert found.best.perplexity == found.dense_perplexity


def test_a_block_that_runs_often_has_a_threshold_each_time() -> None:
    model, inputs, _ = ZOO["looped core"]()
    found = sparsity_at_perplexity(Stack.find(model, inputs), [inputs], 5.0)
    assert sorted(found.best.thresholds) == list(range(6))
    assert len(set(found.best.thresholds.values())) == 6


def test_a_classifier_has_a_perplexity_too() -> None:
    model = nn.Sequential(Residual(8), Residual(8), nn.Linear(8, 3))
    inputs = {"input": torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), "labels": torch.arange(30) % 3}
    found = sparsity_at_perplexity(Stack.find(model, inputs), [inputs], 2.0)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(inputs["input"]), inputs["labels"]).exp()
    assert found.dense_perplexity == pytest.approx(float(expected), rel=1e-5)
    assert found.best.sparsity > 0


@pytest.mark.parametrize(
    "rise, expected",
    [
        (lambda s: s, 0.1), (lambda s: s**4, 0.1**0.25), (lambda s: s**0.3, 0.1 ** (1 / 0.3)), (lambda s: 0.0, 1.0),
        (lambda s: -s, 1.0), (lambda s: math.inf if s > 0.01 else s, 0.01), (lambda s: 1.0, 0.0),
        (lambda s: 0.0 if s < 0.5 else 1.0, 0.5),
    ],
)  # fmt: skip
def test_the_search_ends_below_what_is_allowed(rise: Callable[[float], float], expected: float) -> None:
    tried: list[float] = []

    def counted(square: float) -> float:
        tried.append(square)
        return rise(square)

    found = module._largest(counted, 0.1)
    assert len(tried) <= 8
    assert found == 0.0 or rise(found) <= 0.1
    assert found == pytest.approx(expected, rel=0.3, abs=1e-9)


def test_bad_input() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    for percent in (0, -1.0, math.nan):
        with pytest.raises(UserError, match="got percent"):
            sparsity_at_perplexity(stack, [inputs], percent)
    with pytest.raises(UserError, match="got no data"):
        sparsity_at_perplexity(stack, [])
    bert, given, _ = ZOO["bert"]()
    with pytest.raises(UserError, match="holds no labels"):
        sparsity_at_perplexity(Stack.find(bert, given), [given])
    with pytest.raises(UserError, match="holds no labels"):
        sparsity_at_perplexity(stack, [{"input_ids": token_ids(), "labels": torch.full((3, 12), -100)}])
    mixtral, given, _ = ZOO["mixtral"]()
    with pytest.raises(UserError, match=r"block 0 \(MixtralDecoderLayer\) has no matrix that reads all hidden"):
        sparsity_at_perplexity(Stack.find(mixtral, given), [given])


def test_a_broken_model_says_so_and_is_left_as_it_was() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        sparsity_at_perplexity(stack, [inputs])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
