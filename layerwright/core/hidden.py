"""The hidden activations of a block's feed-forward part: what its last matrix reads, found by trying.

No table of names. The last matrix that runs before the feed-forward part has its result is the one, if the part adds
nothing that depends on the token when this matrix gives zero. Where no parts are known, as in post-normalised blocks,
it is the last matrix of the block. Experts that share one tensor have no such matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.anatomy import input_axis
from layerwright.core.layout import Layout
from layerwright.core.replay import Replay, in_float
from layerwright.core.sharded import whole
from layerwright.core.stack import Stack
from layerwright.core.sublayers import Sublayer
from layerwright.core.trace import Call, same, watch

_ROLE = "mlp"
# Rows of the identity that are sent at once through a matrix whose numbers cannot be read.
_ROWS = 1024


class HiddenFinder:
    """The last matrix of the feed-forward part of each block, looked for once a distinct block."""

    def __init__(self, stack: Stack, parts: Sequence[tuple[Sublayer, ...]] | None = None) -> None:
        """`parts` are the sublayers of each block application, where they are not known to the stack yet."""
        self._stack, self._parts = stack, stack.parts if parts is None else parts
        self._found: dict[int, nn.Module | None] = {}

    def of(self, k: int, replay: Replay) -> nn.Module | None:
        """The matrix of block application `k`, or None; `replay` is any pass, whose state `k` the block is tried on."""
        b = self._stack.order[k]
        if b not in self._found:
            self._found[b] = self._search(k, replay)
        return self._found[b]

    def _search(self, k: int, replay: Replay) -> nn.Module | None:
        block, state = self._stack.blocks[self._stack.order[k]], replay.states[k]
        part = next((s for s in self._parts[k] if s.role == _ROLE), None)
        if part is None and self._parts[k]:
            return None
        module, nth = (block, 0) if part is None else (block.get_submodule(part.path), part.call)

        def run() -> None:
            replay.block(k, state)

        last = next((c for c in reversed(_until(block, module, nth, run)) if self._maps(c)), None)
        if last is None or same(last.inputs[0], state):
            return None
        calls: list[Call] = []
        with silenced(last.module), watch([module], calls):
            run()
        rest = calls[nth].output
        assert rest is not None
        rest = self._stack.layout.tokens(rest.reshape(state.shape))
        return last.module if part is None or torch.equal(rest, rest[:, :1].expand_as(rest)) else None

    def _maps(self, call: Call) -> bool:
        """Whether a module took every token's row to another as wide as the stream, by a matrix."""
        if len(call.inputs) != 1 or call.output is None:
            return False
        (x,), shape = call.inputs, call.output.shape
        if not x.is_floating_point() or shape != (*x.shape[:-1], self._stack.width):
            return False
        return _sides(call.module) == (shape[-1], x.shape[-1]) or input_axis(call.module, x) is not None


def _sides(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of a linear layer, whatever holds its numbers."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _until(block: nn.Module, module: nn.Module, nth: int, run: Callable[[], None]) -> list[Call]:
    """The calls of modules without children up to where a module gives its n-th result."""
    calls: list[Call] = []
    ends: list[int] = []
    handle = module.register_forward_hook(lambda *_: ends.append(len(calls)))
    try:
        with watch([m for m in block.modules() if not any(m.children())], calls):
            run()
    finally:
        handle.remove()
    return calls[: ends[nth]]


def out_weight(module: nn.Module, x: Tensor) -> Tensor:
    """The matrix `[d, m]` of such a module, float32 or wider.

    Args:
        module: that takes rows `[…, m]` to `[…, d]`.
        x: something that it read.
    """
    weight: Any = getattr(module, "weight", None)
    sides = _sides(module)
    if isinstance(weight, nn.Parameter) and weight.is_floating_point() and weight.ndim == 2:
        rows = sides == tuple(weight.shape) or (sides is None and input_axis(module, x) == 1)
        return in_float(whole(weight) if rows else whole(weight).T)
    none = module(x.new_zeros(1, x.shape[-1]))
    pieces = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).split(_ROWS)
    return torch.cat([in_float(module(piece)) - in_float(none) for piece in pieces]).T


def by_token(x: Tensor, layout: Layout, real: Tensor) -> Tensor | None:
    """What a matrix read as a row for each token of each sequence, `[B, T, m]`; None where it read other rows.

    Args:
        x: that it read.
        layout: of the stream.
        real: `[B, T]`.
    """
    if layout.batch == 1 and x.ndim == layout.ndim:
        x = x.movedim(1, 0)
    return x.reshape(*real.shape, -1) if x.numel() == real.numel() * x.shape[-1] else None


@contextmanager
def reading(module: nn.Module, read: list[Tensor]) -> Iterator[None]:
    """Note what a module reads."""
    handle = module.register_forward_pre_hook(lambda m, args: read.append(args[0].detach()))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """Let a module give zeros."""
    handle = module.register_forward_hook(lambda m, args, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()
