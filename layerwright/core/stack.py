"""Stack: a model seen as an ordered tower of blocks with one residual stream, whatever its architecture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, call, on_device, real_tokens, small
from layerwright.core.layout import Layout, find_layout
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.replay import Replay, in_float, read_logits
from layerwright.core.sharded import check_blocks
from layerwright.core.sublayers import Sublayer, explains, find_sublayers
from layerwright.core.trace import Tower, trace
from layerwright.maths.similarity import relative_error

# Blocks of one make in which sublayers are looked for; a dead block, or one with NaN weights, shows none.
_TRIES = 3


@dataclass(frozen=True)
class Stack:
    """A model's tower of blocks: which modules, in which order they run, and how the stream between them is laid out.

    `parts[k]` are the sublayers of block application `k`; `causal` says that no token sees a later one;
    `head` whether the model gives logits for every `token`, for every `sequence`, or none; `tokenwise` that those of a
    token are read off its state alone.

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
    tokenwise: bool

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
        piece = on_device(small(inputs), model)
        with undisturbed(model), torch.no_grad():
            towers = tuple(trace(model, lambda m: call(m, piece)))
            tower = _choose(towers, blocks)
            modules = [model.get_submodule(path) for path in tower.block_paths]
            check_blocks(model, dict(zip(tower.block_paths, modules)))
            layout = find_layout(tower.shapes[0], batch_size(piece), modules)
            bare = cls(model, tower, towers, layout, tower.shapes[0][layout.width], (), False, None, False)
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
    matching = [t for t in towers if t.path == blocks or t.path.startswith(blocks + "[")]
    if not matching:
        known = ", ".join(t.path for t in surveyable) or "none"
        raise UserError(f"no blocks ran at {blocks!r}; towers seen: {known}")
    good = [t for t in matching if t.surveyable]
    if not good:
        raise UserError(f"{matching[0].describe()} cannot be surveyed: blocks must chain in one shape")
    return max(good, key=lambda t: t.depth)


def _with_details(stack: Stack, inputs: Inputs) -> Stack:
    """Sublayers of every block, and whether the tower is causal: both need blocks that can be called again."""
    replay = Replay(stack, inputs)
    _check_batch_axis(stack, replay)
    causal = _is_causal(stack, replay)
    head, tokenwise = _head(stack, replay, causal)
    return replace(stack, parts=_parts(stack, replay), causal=causal, head=head, tokenwise=tokenwise)


def _check_batch_axis(stack: Stack, replay: Replay) -> None:
    """Change all sequences but the first: where that changes the first, the axis taken for the batch holds tokens."""
    base, tokens = replay.states[0], stack.layout.tokens(replay.states[0])
    changed = replay.block(0, stack.layout.native(torch.cat([tokens[:1], _other(tokens[1:])]), base))
    if not _equal(stack.layout.tokens(changed)[:1], stack.layout.tokens(replay.states[1])[:1]):
        raise UserError(
            f"sequences act on one another in block 0 of {stack.tower.path}: the first axis of the inputs must be the "
            "batch; transpose them, or build the model with batch_first=True"
        )


class PartFinder:
    """Sublayers of block after block: blocks of one make mostly have the same, so that what is known is tried first."""

    def __init__(self, stack: Stack) -> None:
        """Start with the parts that the stack has already, if any."""
        self._stack = stack
        self._known: dict[tuple[str, ...], list[tuple[Sublayer, ...]]] = {}
        self._tried: Counter[tuple[str, ...]] = Counter()
        for k, parts in enumerate(stack.parts):
            known = self._known.setdefault(self._make(k), [])
            if parts and parts not in known:
                known.append(parts)

    def of(self, k: int, replay: Replay, state: Tensor, search: bool = True) -> tuple[Sublayer, ...]:
        """The sublayers of block application `k`, watched on a state; with `search` off only known ones are tried."""
        block, make = self._stack.blocks[self._stack.order[k]], self._make(k)
        # A state with NaN shows nothing: the bottom one does as well.
        state = state if state.isfinite().all() else replay.states[0]
        call = (block, lambda: replay.block(k, state), state)
        for parts in self._known.setdefault(make, []):
            if explains(parts, *call):
                return parts
        if search and (self._known[make] or self._tried[make] < _TRIES):
            self._tried[make] += 1
            if found := find_sublayers(*call):
                self._known[make].append(found)
                return found
        return ()

    def _make(self, k: int) -> tuple[str, ...]:
        block = self._stack.blocks[self._stack.order[k]]
        return (type(block).__name__, *(f"{path}:{type(m).__name__}" for path, m in block.named_modules()))


def _parts(stack: Stack, replay: Replay) -> tuple[tuple[Sublayer, ...], ...]:
    finder = PartFinder(stack)
    parts = [finder.of(k, replay, replay.states[k]) for k in range(stack.depth)]
    # A part that adds nothing, or NaN, cannot be found by what it adds: it is known from the blocks above it.
    return tuple(p or finder.of(k, replay, replay.states[k], search=False) for k, p in enumerate(parts))


def _head(stack: Stack, replay: Replay, causal: bool) -> tuple[str | None, bool]:
    """Whose logits the model gives, and whether each is read off one token's state."""
    logits = read_logits(replay.output, replay.states[-1])
    if logits is None:
        return None, False
    tokens = stack.layout.tokens(replay.states[-1])
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape[:2] or not stack.layout.plain:
        return ("sequence" if logits.ndim == 2 and len(logits) == len(tokens) else None), False
    changed = torch.cat([_other(tokens[:, :1]), tokens[:, 1:]], dim=1)
    again = read_logits(replay.tail(stack.layout.native(changed, replay.states[-1])), replay.states[-1])
    tokenwise = again is not None and _equal(again[:, 1:], logits[:, 1:])
    # Where later blocks mix tokens, only a causal tower says that a logit still belongs to its token.
    return ("token" if tokenwise or causal else None), tokenwise


def _is_causal(stack: Stack, replay: Replay) -> bool:
    """Change the later half of the tokens: in a causal tower the earlier half stays as it is.

    Where a block leaves NaN behind, the next one goes on from the bottom state, so that one block hides no other.
    """
    base = replay.states[0]
    tokens = stack.layout.tokens(base)
    if tokens.shape[1] < 2 or not stack.layout.plain:
        return False
    real = real_tokens(replay.inputs, tokens)
    place = torch.cumsum(real, 1)
    later = place > (place[:, -1:] // 2).clamp_min(1)
    changed = stack.layout.native(torch.where(later[..., None], _other(tokens), tokens), base)
    before, other = base, changed
    for k in range(stack.depth):
        before = replay.states[k + 1] if before is replay.states[k] else replay.block(k, before)
        other = replay.block(k, other)
        if not before.isfinite().all():
            before, other = base, changed
        elif not _equal(stack.layout.tokens(other)[real & ~later], stack.layout.tokens(before)[real & ~later]):
            return False
    return True


def _other(tokens: Tensor) -> Tensor:
    """States unlike the given ones, also after a norm."""
    return tokens.flip(-1) + 1.0


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    return relative_error(in_float(a), in_float(b)) <= max(1e-3, 2 * torch.finfo(b.dtype).eps)
