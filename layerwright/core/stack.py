"""Stack: a model seen as an ordered tower of blocks with one residual stream, whatever its architecture."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.layout import Layout, find_layout
from layerwright.core.inputs import Inputs, batch_size, call, small
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.sublayers import Sublayer, find_sublayers
from layerwright.core.replay import Replay, read_logits
from layerwright.core.trace import Tower, first_tensor, trace


@dataclass(frozen=True)
class Stack:
    """A model's tower of blocks: which modules, in which order they run, and how the stream between them is laid out.

    `parts[k]` are the sublayers of block application `k`; `causal` says that no token sees a later one;
    `head` whether the model gives logits for every `token`, for every `sequence`, or none.

    Example:
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(8, 8)
        ...     def forward(self, x):
        ...         return x + self.linear(x)
        >>> stack = Stack.find(nn.Sequential(Block(), Block(), nn.Linear(8, 3)), torch.randn(4, 8))
        >>> stack.tower.path, stack.depth, stack.width
        ('(model)[0:2]', 2, 8)
    """

    model: nn.Module
    tower: Tower
    towers: tuple[Tower, ...]
    layout: Layout
    width: int
    parts: tuple[tuple[Sublayer, ...], ...]
    causal: bool
    head: str | None

    @classmethod
    def find(cls, model: nn.Module, inputs: Inputs, blocks: str | None = None) -> Stack:
        """Trace one call and take the best tower, or the one at the path `blocks`.

        Args:
            model: any module; DDP and `torch.compile` wrappers are looked through.
            inputs: one batch, as the model takes it. Only a small piece of it is used.
            blocks: path of the container of blocks (`model.layers`), as printed in `Stack.towers` and in errors.

        Raises:
            UserError: no tower of at least two chained blocks, or none at that path.
        """
        model = unwrap(model)
        piece = small(inputs)
        with undisturbed(model), torch.no_grad():
            towers = tuple(trace(model, lambda m: call(m, piece)))
            tower = _choose(towers, blocks)
            modules = [model.get_submodule(path) for path in tower.block_paths]
            states = _first_states(model, modules, tower, piece)
            layout = find_layout(states, batch_size(piece), modules)
            bare = cls(model, tower, towers, layout, states.shape[layout.width], (), False, None)
            return _with_details(bare, piece)

    @property
    def depth(self) -> int:
        """Number of block applications L."""
        return self.tower.depth

    @property
    def order(self) -> tuple[int, ...]:
        """Which distinct block runs at each of the L applications."""
        return self.tower.order

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The distinct blocks."""
        return [self.model.get_submodule(path) for path in self.tower.block_paths]

    @property
    def role_names(self) -> list[str]:
        """All names of sublayers, in order of appearance."""
        return list(dict.fromkeys(s.role for parts in self.parts for s in parts))


def _choose(towers: tuple[Tower, ...], blocks: str | None) -> Tower:
    surveyable = [t for t in towers if t.surveyable]
    if blocks is None:
        if surveyable:
            return surveyable[0]
        seen = "; ".join(t.describe() for t in towers[:4]) or "no container whose children run one after another"
        raise UserError(
            f"no tower of at least two chained blocks found; seen: {seen}. A block must take the stream in and give "
            "the next state out, its residual addition inside; point at the blocks with --blocks PATH"
        )
    matching = [t for t in towers if t.path == blocks] or [t for t in towers if fnmatch.fnmatch(t.path, blocks + "[[]*]")]
    if not matching:
        known = ", ".join(t.path for t in surveyable) or "none"
        raise UserError(f"no blocks ran at {blocks!r}; towers seen: {known}")
    good = [t for t in matching if t.surveyable]
    if not good:
        raise UserError(f"{matching[0].describe()} cannot be surveyed: blocks must chain in one shape")
    return max(good, key=lambda t: t.depth)


def _first_states(model: nn.Module, modules: list[nn.Module], tower: Tower, inputs: Inputs) -> Tensor:
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        state = first_tensor(output)
        if state is not None:
            found.append(state)

    handle = modules[tower.order[0]].register_forward_hook(note)
    try:
        call(model, inputs)
    finally:
        handle.remove()
    return found[0]


def _with_details(stack: Stack, inputs: Inputs) -> Stack:
    """Sublayers of every block, and whether the tower is causal: both need blocks that can be called again."""
    replay = Replay(stack, inputs)
    known: dict[int, tuple[Sublayer, ...]] = {}
    for k, b in enumerate(stack.order):
        if b not in known:
            known[b] = find_sublayers(stack.blocks[b], lambda k=k: replay.block(k, replay.states[k]), replay.states[k])
    parts = tuple(known[b] for b in stack.order)
    return replace(stack, parts=parts, causal=_is_causal(stack, replay), head=_head(stack, replay))


def _head(stack: Stack, replay: Replay) -> str | None:
    logits = read_logits(replay.output, replay.states[-1])
    if logits is None:
        return None
    tokens = stack.layout.tokens(replay.states[-1])
    if logits.ndim == 3 and logits.shape[:2] == tokens.shape[:2] and stack.layout.plain:
        return "token"
    return "sequence" if logits.ndim == 2 and logits.shape[0] == tokens.shape[0] else None


def _is_causal(stack: Stack, replay: Replay) -> bool:
    """Change the last token at the bottom of the tower: in a causal tower no earlier token changes at the top."""
    base = replay.states[0]
    tokens = stack.layout.tokens(base)
    if tokens.shape[1] < 2 or not stack.layout.plain:
        return False
    changed = tokens.clone()
    changed[:, -1] = changed[:, -1].flip(-1) + 1.0
    h, g = base, stack.layout.native(changed, base)
    for k in range(stack.depth):
        h, g = replay.block(k, h), replay.block(k, g)
    h, g = stack.layout.tokens(h)[:, :-1], stack.layout.tokens(g)[:, :-1]
    scale = h.abs().amax().clamp_min(1e-12)
    return bool((h - g).abs().amax() <= 1e-3 * scale)

