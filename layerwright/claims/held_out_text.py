"""The bundled model and windows of text that it never saw, for claims about it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import layerwright as lw


@cache
def demo(length: int, tokens: int = 200_000) -> tuple[Any, Any, Tensor]:
    """The bundled model in float32, its tokenizer, and windows of its held-out text, `[window, length]`.

    Args:
        length: tokens in a window.
        tokens: the most that are read; a claim keeps its own, as the windows of a seed depend on how many there are.
    """
    model, tokenizer, _ = lw.load_model("demo", dtype="float32")
    data = lw.load_data("demo", model, tokenizer, length=length, max_tokens=tokens)
    ids = [batch["input_ids"] for batch in data.batches]
    return model, tokenizer, torch.cat([part for part in ids if part.shape[1] == length])


def part(windows: Tensor, seed: int, size: int) -> Tensor:
    """Windows of one seed: seeds take turns through one shuffled order, and share none until it is used up.

    Example:
        >>> both = torch.cat([part(torch.arange(6), seed, 3) for seed in (0, 1)])
        >>> sorted(both.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return windows[order[torch.arange(seed * size, (seed + 1) * size) % len(order)]]
