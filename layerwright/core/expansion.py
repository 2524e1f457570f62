"""The branches of a tower as functions of the stream, each block called with the arguments of the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm
from torch.overrides import TorchFunctionMode

from layerwright.core.batch import Batch
from layerwright.core.desk import Desk, Numbers, join
from layerwright.core.inputs import rows
from layerwright.core.reduce import Key
from layerwright.core.replay import Replay
from layerwright.core.sharded import is_sharded
from layerwright.core.stack import Stack

SCOPE = "expansion"
# Tokens that are differentiated at once: several graphs of a block are held, with all attention written out.
_TOKENS = 512


def give_expansion(stack: Stack, desk: Desk, part: Batch, replay: Replay) -> list[str]:
    """Feed the measures that differentiate blocks several times, a few sequences at a time.

    What a block hands on to later ones beside the stream stays what it was in the pass.

    Args:
        stack: the model and its tower.
        desk: where the measures are.
        part: some sequences.
        replay: the pass over them.

    Returns:
        notes on what could not be measured, and why.
    """
    found: dict[tuple[str, Key], list[Numbers]] = {}
    if any(map(is_sharded, stack.model.parameters())):
        return _refused(desk, "the weights are spread over processes")
    try:
        for some in _few(stack, part, replay):
            with differentiable(), sdpa_kernel(SDPBackend.MATH):
                for row, numbers in desk.evaluate(SCOPE, _quantities(stack, some)).items():
                    found.setdefault(row, []).append(numbers)
    except RuntimeError as error:
        if "derivative" not in str(error) and "double backward" not in str(error):
            raise
        why = str(error).splitlines()[0]
        return _refused(desk, f"a part of this model cannot be differentiated several times ({why})")
    for (name, key), pieces in found.items():
        desk.add(name, key, join(pieces))
    desk.close(SCOPE, part.mask)
    return []


def _refused(desk: Desk, why: str) -> list[str]:
    return [f"{m.name} could not be measured: {why}" for m in desk.measures if m.scope == SCOPE]


def _few(stack: Stack, part: Batch, replay: Replay) -> Iterable[Replay]:
    """The pass, in pieces of not too many tokens."""
    step = max(1, _TOKENS // part.real.shape[1])
    if step >= part.size:
        return [replay]
    return (Replay(stack, rows(part.inputs, slice(n, n + step))) for n in range(0, part.size, step))


def _quantities(stack: Stack, replay: Replay) -> dict[str, Any]:
    tokens = stack.layout.tokens
    branches = [partial(_added, stack, replay, k) for k in range(stack.depth)]
    return {"branches": branches, "bottom": tokens(replay.states[0]), "top": tokens(replay.states[-1])}


def _added(stack: Stack, replay: Replay, k: int, x: Tensor) -> Tensor:
    """What block application `k` adds to a state `[B, T, d]`."""
    return stack.layout.tokens(replay.block(k, stack.layout.native(x, replay.states[k]))) - x


class differentiable(TorchFunctionMode):
    """Let layer norms be made of plain operations: torch's own gives a wrong third backward pass, without a word."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain = _layer_norm if func in (layer_norm, torch.layer_norm) else func
        return plain(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,  # torch's names: they may be given by keyword
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = [*range(-len(tuple(normalized_shape)), 0)]
    x = input - input.mean(axes, keepdim=True)
    x = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
