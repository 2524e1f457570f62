"""A batch of model inputs: calling the model on it, and taking some of its sequences or tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.sharded import device_of
from layerwright.core.trace import first_tensor

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run the model on a batch, without a key-value cache: a cached call would change state between two calls."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    extra: dict[str, Any] = {}
    config = getattr(model, "config", None)
    if config is not None and "use_cache" not in inputs and _takes(model.forward, "use_cache"):
        extra["use_cache"] = False
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs and "input_ids" in inputs:
        extra["decoder_input_ids"] = inputs["input_ids"]
    return model(**{k: v for k, v in inputs.items() if k != "labels"}, **extra)


def _takes(forward: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(inspect.unwrap(forward)).parameters


def batch_size(inputs: Inputs) -> int:
    """Number of sequences: the first axis of the first tensor."""
    tensor = first_tensor(inputs)
    if tensor is None or tensor.ndim == 0:
        raise UserError("got a batch without a tensor; expected tensors whose first axis is the batch")
    return tensor.shape[0]


def in_pairs(batches: Iterable[Inputs]) -> list[list[Inputs]]:
    """Batches in groups of an even number of sequences, the last apart: sequences 0 and 1, 2 and 3, … stay together.

    Example:
        >>> [[len(batch) for batch in group] for group in in_pairs(torch.ones(n, 5) for n in (2, 3, 4, 3, 1))]
        [[2], [3, 4, 3], [1]]
    """
    groups: list[list[Inputs]] = []
    even = True
    for batch in batches:
        if even:
            groups.append([])
        groups[-1].append(batch)
        even ^= batch_size(batch) % 2 == 1
    return groups


def on_device(inputs: Inputs, model: nn.Module) -> Inputs:
    """The batch where the model's first weights are; weights that are nowhere yet do not count."""
    device = next((device_of(p) for p in model.parameters() if not p.is_meta), None)
    return inputs if device is None else moved(inputs, device)


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The batch on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, tuple):
        return tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)
    return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in inputs.items()}


def rows(inputs: Inputs, part: slice | Tensor) -> Inputs:
    """Some sequences of a batch: every tensor whose first axis is the batch is cut."""
    n = batch_size(inputs)

    def cut(x: Any) -> Any:
        return x[part] if isinstance(x, Tensor) and x.ndim and x.shape[0] == n else x

    if isinstance(inputs, Tensor):
        return cut(inputs)
    if isinstance(inputs, tuple):
        return tuple(cut(x) for x in inputs)
    return {key: cut(x) for key, x in inputs.items()}


def short(inputs: Inputs, tokens: int, last: bool = False) -> Inputs:
    """The first (or last) tokens of every sequence, for token ids and their masks; other inputs stay whole."""
    kept = slice(-tokens, None) if last else slice(0, tokens)
    if isinstance(inputs, Tensor):
        return inputs[:, kept] if inputs.ndim == 2 and not inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple):
        return inputs
    names = {k for k, x in inputs.items() if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point()}
    return {key: x[:, kept] if key in names else x for key, x in inputs.items()}


def small(inputs: Inputs) -> Inputs:
    """Two sequences of at most 12 tokens, enough to trace with; the last ones where padding stands in front."""
    piece = rows(inputs, slice(0, 2))
    mask = piece.get("attention_mask") if isinstance(piece, Mapping) else None
    return short(piece, 12, last=isinstance(mask, Tensor) and mask.ndim == 2 and not mask[:, 0].all())


def real_tokens(inputs: Inputs, stream: Tensor, mask_name: str = "attention_mask") -> Tensor:
    """Which tokens of a stream `[B, T, d]` are the user's, `[B, T]`: all but padding and virtual tokens."""
    mask = inputs.get(mask_name) if isinstance(inputs, Mapping) else None
    batch, tokens = stream.shape[:2]
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] > tokens or len(mask) != batch:
        return torch.ones(batch, tokens, dtype=torch.bool, device=stream.device)
    # A stream longer than the tokens has virtual tokens (soft prompts) in front of them.
    virtual = torch.zeros(batch, tokens - mask.shape[1], dtype=torch.bool, device=stream.device)
    return torch.cat([virtual, mask.to(stream.device).bool()], dim=1)
