"""A batch of model inputs: calling the model on it, and taking some of its sequences or tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from layerwright.core.errors import UserError
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


def short(inputs: Inputs, tokens: int) -> Inputs:
    """The first tokens of every sequence, for tensors of token ids and their masks; other inputs stay whole."""
    if isinstance(inputs, Tensor):
        return inputs[:, :tokens] if inputs.ndim == 2 and not inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple):
        return inputs
    names = {k for k, x in inputs.items() if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point()}
    return {key: x[:, :tokens] if key in names else x for key, x in inputs.items()}


def small(inputs: Inputs) -> Inputs:
    """Two sequences of at most 32 tokens: enough to trace with."""
    return short(rows(inputs, slice(0, 2)), 32)
