from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from inside import attention, padded
from torch import Tensor
from zoo import gpt2, language_model, llama, token_ids

from layerwright.measures.attention_filter import attention_filter

MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": lambda **more: language_model("Bert", "BertForMaskedLM", **more),
    "mixtral": lambda **more: language_model("Mixtral", num_key_value_heads=2, head_dim=8, **more),
}


def values(found: Any, length: int, name: str = "largest") -> Tensor:
    """`[B, H]`, NaN where a sequence does not count."""
    chosen = [x for (_, n, quantity), x in found.items() if (n, quantity) == (length, name)]
    rows = [torch.where(where[:, 0], gains, torch.nan) for gains, where in chosen]
    return torch.stack(rows, dim=1)


def naive(a: Tensor, name: str = "largest") -> float:
    """One head of one sequence `[n, n]` as published: HC times the matrix, and its full decomposition."""
    n = len(a)
    centring = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n
    singular = torch.linalg.svdvals(centring @ a.double())
    return float(singular[0] if name == "largest" else (singular.square().sum() / (n - 1)).sqrt())


def returned(model: torch.nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(model.eval()(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("left", [False, True])
def test_by_loops_over_what_the_model_returns(name: str, left: bool) -> None:
    model = MODELS[name](attn_implementation="eager")
    lengths = [12, 9, 5]
    inputs = padded(token_ids(), lengths, left)
    matrices = returned(model, inputs)
    for found, maps in zip(attention(model, inputs), matrices, strict=True):
        gains = attention_filter(found, lengths=(5, 9))
        for (b, n), name in product(enumerate(lengths), ("largest", "mean")):
            kept = slice(12 - n, 12) if left else slice(0, n)
            expected = [naive(a[kept, kept], name) for a in maps[b]]
            assert values(gains, 0, name)[b].tolist() == pytest.approx(expected, rel=1e-4)


def test_fused_and_written_out_attention_have_the_same_gains() -> None:
    ids = {"input_ids": token_ids()}
    for make in (llama, gpt2):
        found = [attention(make(attn_implementation=way), ids) for way in ("eager", "sdpa")]
        for one, other in zip(*found, strict=True):
            for name in ("largest", "mean"):
                gains = [values(attention_filter(x), 0, name) for x in (one, other)]
                torch.testing.assert_close(*gains, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_uniform_attention_lets_nothing_through_and_that_to_itself_all(n: int) -> None:
    both = torch.stack([torch.full((n, n), 1 / n), torch.eye(n), torch.eye(n)[:1].expand(n, n)])[None]
    for name in ("largest", "mean"):
        gains = values(attention_filter(both, lengths=()), 0, name)[0].tolist()
        assert gains == pytest.approx([0.0, float(n > 1), 0.0], abs=1e-5)


def test_two_halves_that_look_at_two_tokens_reach_the_largest_gain() -> None:
    n = 8
    a = torch.zeros(n, n)
    a[: n // 2, 0] = a[n // 2 :, 1] = 1.0
    assert values(attention_filter(a[None, None]), 0).item() == pytest.approx(math.sqrt(n / 2), rel=1e-5)


def test_it_bounds_what_is_left_of_differences() -> None:
    torch.manual_seed(0)
    a = (4 * torch.randn(1, 1, 9, 9)).softmax(-1)
    gain = values(attention_filter(a), 0).item()
    for _ in range(20):
        x = torch.randn(9, 5)
        before, after = ((y - y.mean(0)).norm() for y in (x, a[0, 0] @ x))
        assert after <= gain * before * (1 + 1e-5)


def test_the_mean_is_that_of_random_differences() -> None:
    torch.manual_seed(0)
    a = (4 * torch.randn(1, 1, 9, 9)).softmax(-1)
    x = torch.randn(20000, 9)
    before, after = ((y - y.mean(1, keepdim=True)).square().sum(1).mean() for y in (x, x @ a[0, 0].T))
    gain = values(attention_filter(a), 0, "mean").item()
    assert gain**2 == pytest.approx(float(after / before), rel=0.03)  # four standard errors of 20,000 draws


def test_the_order_of_the_tokens_changes_nothing() -> None:
    torch.manual_seed(0)
    a, order = torch.randn(2, 3, 20, 20).softmax(-1), torch.randperm(20)
    found, mixed = (values(attention_filter(x, lengths=()), 0) for x in (a, a[..., order, :][..., order]))
    torch.testing.assert_close(found, mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left", [False, True])
def test_the_first_tokens_of_a_causal_model_attend_as_the_cut_text_does(left: bool) -> None:
    model, ids = llama(), token_ids(2, 20)
    whole = attention(model, padded(ids, [20, 7], left))
    cut = attention(model, {"input_ids": ids[:1, :8]})
    for found, expected in zip(whole, cut, strict=True):
        gains = attention_filter(found, lengths=(8, 20, 64))
        torch.testing.assert_close(values(gains, 8)[:1], values(attention_filter(expected), 0), rtol=1e-4, atol=1e-6)
        assert values(gains, 8)[1].isnan().all()  # seven tokens are fewer
        torch.testing.assert_close(values(gains, 20)[:1], values(gains, 0)[:1], rtol=1e-6, atol=0.0)
        assert values(gains, 64).isnan().all()


def test_of_all_tokens_to_all_the_first_share_out_what_they_have() -> None:
    scores = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    gains = attention_filter(scores.softmax(-1), lengths=(5,))
    assert values(gains, 5).item() == pytest.approx(naive(scores[0, 0, :5, :5].softmax(-1)), rel=1e-4)


def test_the_more_tokens_the_lower_at_scores_of_one_spread() -> None:
    scores = torch.randn(1, 4, 256, 256, generator=torch.Generator().manual_seed(0))
    gains = attention_filter(scores.softmax(-1), lengths=(16, 64))
    for name in ("largest", "mean"):
        means = [values(gains, n, name).mean().item() for n in (16, 64, 0)]
        assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_temperature_is_that_of_the_scores(tau: float) -> None:
    scores = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    scores = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf)
    found = attention_filter(scores.softmax(-1), temperature=tau, lengths=(6,))
    for (n, m), name in product(((0, 9), (6, 6)), ("largest", "mean")):
        expected = [naive(s[:m, :m].div(tau).softmax(-1), name) for s in scores[0]]
        assert values(found, n, name)[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_nan_stays_with_its_head_and_an_empty_sequence_does_not_count() -> None:
    a = torch.eye(4).repeat(2, 2, 1, 1)
    a[0, 1, 2, 2], a[1] = torch.nan, 0.0
    found = values(attention_filter(a), 0)
    assert found[0, 0] == pytest.approx(1.0)
    assert found[0, 1].isnan()
    assert found[1].isnan().all()
