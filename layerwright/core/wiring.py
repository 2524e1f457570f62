"""How a model without weights is wired, found by running it with random ones on a small piece of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, call, moved, small
from layerwright.core.memory import available_memory
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay, watch_blocks
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.trace import first_tensor
from layerwright.maths.similarity import relative_error

# What a run of a few tokens takes beside the weights.
_ROOM = 2**26


@dataclass(frozen=True)
class Wiring:
    """What a run with random weights shows of a model.

    Attributes:
        stack: the tower, its sublayers and what kind of tower it is.
        structures: what each block application returns beside the stream.
        before: weights that the model reads before its blocks run, and not after.
        after: weights that it reads after them.
        both: weights that it may read anywhere.
        error: how far the model taken apart is from the whole one.
        itemsize: bytes of a number of the stream; some models keep it in float32 whatever their weights are in.
    """

    stack: Stack
    structures: list[Any]
    before: list[str]
    after: list[str]
    both: list[str]
    error: float
    itemsize: int

    @classmethod
    def find(cls, skeleton: Skeleton, inputs: Inputs, blocks: str | None = None) -> Wiring:
        """Fill in random weights, trace, and hold the model taken apart against the whole one.

        Raises:
            UserError: the model has no tower, or one that cannot be walked (the message names the module), or not even
                one of its blocks fits into memory.
        """
        with pretending(skeleton):
            stack = Stack.find(skeleton.model, moved(inputs, skeleton.device), blocks)
            piece = moved(small(inputs), skeleton.device)
            with undisturbed(stack.model), torch.no_grad():
                return cls._of(skeleton, stack, piece)

    @classmethod
    def _of(cls, skeleton: Skeleton, stack: Stack, piece: Inputs) -> Wiring:
        whole = Replay(stack, piece)
        apart = Replay.captured(stack, piece, whole.structures)
        k = apart.differs(whole)
        k = _departs(apart, whole) if k is None else k
        if k is not None:
            path = stack.tower.block_paths[stack.order[k]]
            raise UserError(
                f"{path} is called with more than the stream that depends on the blocks before it, so that the model "
                "cannot be taken block by block; survey it with --stream never"
            )
        before, after, both = _phases(skeleton, stack, piece)
        error = _distance(whole.output, apart.tail(whole.states[-1]))
        skeleton.zero(before)
        if _distance(whole.output, apart.tail(whole.states[-1])) > error:  # they are read after the tower too
            before, both = [], both + before
        itemsize = max(state.element_size() for state in whole.states)
        return cls(stack, whole.structures, before, after, both, error, itemsize)


@contextmanager
def pretending(skeleton: Skeleton) -> Iterator[None]:
    """Random weights in the whole model for a while; blocks of one make share theirs.

    Raises:
        UserError: not even one block of each make fits into memory.
    """
    members = _members(skeleton.model)
    _check_room(skeleton, members)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inside = {name for path in members for name in skeleton.below(path)}
        skeleton.pretend(name for name in skeleton.recipes if name not in inside)
        skeleton.pretend_blocks(members)
    try:
        yield
    finally:
        skeleton.clear(skeleton.recipes)


def _members(model: nn.Module) -> list[str]:
    """Paths of everything that may be a block: members of lists, outermost ones first."""
    found: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{p}.") for p in found):
            found.extend(f"{path}.{name}" for name, _ in module.named_children())
    return found


def _check_room(skeleton: Skeleton, members: list[str]) -> None:
    """One block of each make is there at once."""
    needed, free = skeleton.pretended(members) + _ROOM, available_memory()
    if skeleton.device.type == "cpu" and needed > free:
        raise UserError(
            f"one block of each kind takes {needed >> 20} MB of memory and {free >> 20} MB is free; choose a smaller "
            "--dtype, or a machine with more"
        )


def _departs(apart: Replay, whole: Replay) -> int | None:
    """The first block that gives something else when it is called alone: what it gets is not all seen."""
    calls = list(enumerate(pairwise(whole.states)))
    for k, (before, _) in calls:
        apart.first(k, before)
    for k, (before, _) in calls:  # whatever blocks leave in objects for each other is another batch's now
        apart.block(k, before + 1)
    errors = {k: relative_error(apart.block(k, x).double(), after.double()) for k, (x, after) in reversed(calls)}
    most = max(1e-5, 4 * torch.finfo(whole.states[-1].dtype).eps)
    return min((k for k, error in errors.items() if error > most), default=None)


def _phases(skeleton: Skeleton, stack: Stack, piece: Inputs) -> tuple[list[str], list[str], list[str]]:
    """Weights outside the blocks, by when their modules run: before the tower only, after it only, or who knows."""
    inside = {m for block in stack.blocks for m in block.modules()}
    loose = {m: names for m in stack.model.modules() if m not in inside and (names := skeleton.owned(m))}
    _check_apart(skeleton, stack, loose.values())
    early: set[nn.Module] = set()
    late: set[nn.Module] = set()
    applied = 0

    def leave(k: int, output: Any, state: Tensor) -> None:
        nonlocal applied
        applied = k + 1

    def note(module: nn.Module, args: Any) -> None:
        (early if applied == 0 else late).add(module)
        if 0 < applied < stack.depth:
            early.add(module)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if applied > 0:  # the tower ran inside it: its own weights may be read before and after
            late.add(module)

    handles = [m.register_forward_pre_hook(note) for m in loose] + [m.register_forward_hook(end) for m in loose]
    try:
        with watch_blocks(stack, lambda *_: None, leave):
            call(stack.model, piece)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple[bool, bool], set[str]] = {}
    for module, names in loose.items():
        groups.setdefault((module in early, module in late), set()).update(names)
    ran_early, ran_late = groups.get((True, False), set()), groups.get((False, True), set())
    both = groups.get((True, True), set()) | groups.get((False, False), set()) | (ran_early & ran_late)
    order = list(skeleton.recipes)
    chosen = [[n for n in order if n in group] for group in (ran_early - both, ran_late - both, both)]
    return chosen[0], chosen[1], chosen[2]


def _check_apart(skeleton: Skeleton, stack: Stack, outside: Iterable[list[str]]) -> None:
    """A block's weights come and go with it, so that nothing outside the blocks may need them."""
    loose = {name for names in outside for name in names}
    for path in stack.tower.block_paths:
        for name in skeleton.below(path):
            if name in loose:
                raise UserError(
                    f"{path} shares weight {name} with a module outside the blocks, so that the model cannot be taken "
                    "block by block; survey it with --stream never"
                )


def _distance(a: Any, b: Any) -> float:
    x, y = first_tensor(a), first_tensor(b)
    assert x is not None
    assert y is not None
    return relative_error(y.double(), x.double()) if x.shape == y.shape else float("inf")
