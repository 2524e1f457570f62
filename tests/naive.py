"""Definitions of the papers written out plainly, with hooks and loops of their own: what the fast code must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import layerwright.measures  # noqa: F401 - registers every measure
from layerwright.core.batch import generator_for
from layerwright.core.inputs import rows
from layerwright.core.record import record
from layerwright.core.registry import choose
from layerwright.core.stack import Stack


def tables(
    model: nn.Module, inputs: Any, *names: str, batch: int | None = None, **options: Any
) -> dict[str, pd.DataFrame]:
    """The tables of the library, all sequences in one batch or in batches of a size."""
    stack = Stack.find(model, inputs)
    n = len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))
    size = batch or n
    batches = [rows(inputs, slice(a, a + size)) for a in range(0, n, size)]
    return record(stack, batches, choose("deep", names), sequences=n, **options).tables


def column(frame: pd.DataFrame, name: str = "value", **fixed: Any) -> Tensor:
    """A column of the rows with these values, in the order of the table."""
    for key, value in fixed.items():
        frame = frame[frame[key] == value]
    return torch.tensor(frame[name].to_numpy(dtype=float))


def first(output: Any) -> Tensor:
    """A block gives a tensor, or a tuple that starts with it."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def hooked(*pairs: tuple[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks for a while."""
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(model: nn.Module, ids: Tensor, **more: Any) -> Tensor:
    """Logits of one plain call."""
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False, **more).logits


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of a Llama or a GPT-2."""
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def decode(model: nn.Module, h: Tensor) -> Tensor:
    """Final norm and head of a Llama or a GPT-2."""
    with torch.no_grad():
        return model.lm_head(model.model.norm(h) if hasattr(model, "model") else model.transformer.ln_f(h))


def stream(model: nn.Module, ids: Tensor, **more: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """States h_0 … h_L, attention updates and MLP updates."""
    h: list[Tensor] = []
    a: list[Tensor] = []
    m: list[Tensor] = []
    pairs: list[tuple[nn.Module, Callable[..., Any]]] = []
    for k, block in enumerate(blocks_of(model)):
        if k == 0:
            pairs.append((block, lambda mod, x, y: h.append(x[0])))
        pairs.append((block, lambda mod, x, y: h.append(first(y))))
        pairs.append((getattr(block, "self_attn", None) or block.attn, lambda mod, x, y: a.append(first(y))))
        pairs.append((block.mlp, lambda mod, x, y: m.append(y)))
    with hooked(*pairs):
        forward(model, ids, **more)
    return h, a, m


def without(model: nn.Module, s: int, ids: Tensor, until: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
    """States and logits when block s hands on its input, at all tokens but the first, or only before `until`."""

    def bypass(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        kept = first(output)
        out = args[0].clone()
        out[:, 0] = kept[:, 0]
        if until is not None:
            for b, t in enumerate(until.tolist()):
                out[b, t:] = kept[b, t:]
        return out if isinstance(output, Tensor) else (out, *output[1:])

    h: list[Tensor] = []
    pairs: list[tuple[nn.Module, Callable[..., Any]]] = []
    for k, block in enumerate(blocks_of(model)):
        if k == 0:
            pairs.append((block, lambda mod, x, y: h.append(x[0])))
        if k == s:
            pairs.append((block, bypass))
        pairs.append((block, lambda mod, x, y: h.append(first(y))))
    with hooked(*pairs):
        logits = forward(model, ids)
    return h, logits


def splits(sequences: int, tokens: int, seed: int = 0) -> Tensor:
    """The tokens from which the future is measured, 8 to 4 from the ends, drawn by each sequence's own number."""
    low, high = min(8, (tokens - 1) // 2), tokens - 5
    draws = [torch.rand((), generator=generator_for(seed, b, -1)) for b in range(sequences)]
    return torch.tensor([low + int(u * (high - low)) for u in draws])


def drawn(sequences: int, tokens: int, n: int, seed: int = 0) -> Tensor:
    """The tokens at which the lens looks, one of sixteen or fewer, drawn by each sequence's own number."""
    return torch.stack([torch.randperm(tokens, generator=generator_for(seed, b))[:n] for b in range(sequences)])


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next token, in nat."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
