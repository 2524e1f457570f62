"""Models to reshape, and what they answer."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from zoo import ZOO

from layerwright.core.inputs import call
from layerwright.core.stack import Stack
from layerwright.core.trace import first_tensor


def prepared(name: str) -> tuple[Stack, Any]:
    """A model of the zoo whose vectors are random too, so that no norm is trivial; a copy of its own for each test."""
    return copy.deepcopy(_prepared(name))


@cache
def _prepared(name: str) -> tuple[Stack, Any]:
    model, inputs, expected = ZOO[name]()
    model.eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return Stack.find(model, inputs, expected.blocks), inputs


def deep_llama(**options: Any) -> tuple[Stack, Any]:
    """Four blocks with two heads to a key, whose size is an entry of its own."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=40,
        intermediate_size=24, initializer_range=0.2, **options,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    inputs = {"input_ids": torch.randint(0, 40, (2, 12))}
    return Stack.find(model, inputs), inputs


def answer(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        found = first_tensor(call(model, inputs))
    assert found is not None
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1.0))
