"""The forward pass: every block's update measured while it runs, so that only numbers outlive the block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from layerwright.core import collection
from layerwright.core.batch import Batch
from layerwright.core.calls import structure
from layerwright.core.desk import Desk
from layerwright.core.inputs import call
from layerwright.core.lens import sampled_tokens
from layerwright.core.replay import Replay, in_float, watch_blocks
from layerwright.core.stack import Stack
from layerwright.core.sublayers import Sublayer
from layerwright.maths.similarity import relative_error


class BlockPass:
    """What the blocks of a tower do to one batch, whoever calls them: `begin` and `end` stand around each application.

    `added` is the sum of all parts in float64 for one sequence, enough to tell a wrong part from rounding; it is made
    where `check_sum` says so.
    """

    def __init__(
        self, stack: Stack, desk: Desk, batch: Batch, parts: Sequence[tuple[Sublayer, ...]], check_sum: bool
    ) -> None:
        """Prepare; `parts` are the sublayers of each block application, known at the latest when it begins."""
        self.stack, self.desk, self.batch, self.parts, self.check_sum = stack, desk, batch, parts, check_sum
        self.added: Tensor | None = None
        self.current: Tensor
        self._before: Tensor
        self._calls: dict[str, int] = {}
        self._k = 0

    @contextmanager
    def watching(self, applications: Iterable[int]) -> Iterator[None]:
        """Measure the sublayers of these block applications while they run."""
        order, handles = self.stack.order, []
        paths = sorted({(order[k], s.path) for k in applications for s in self.parts[k]})
        try:
            for b, path in paths:
                module = self.stack.blocks[b].get_submodule(path)
                handles.append(module.register_forward_hook(self._part_hook(path)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def bottom(self, state: Tensor) -> None:
        """The stream before the first block."""
        x = self.stack.layout.tokens(state)
        self.batch.settle(x, state)
        self.desk.give("point", (0,), {"state": x, "real": self.batch.real})
        if self.check_sum:
            self.added = x[:1].double()

    def begin(self, k: int, state: Tensor) -> None:
        """Block application `k` is called on a state."""
        self._before = self.current = self.stack.layout.tokens(state)
        self._k, self._calls = k, {}

    def end(self, k: int, state: Tensor) -> None:
        """It has left another."""
        after = self.stack.layout.tokens(state)
        given = {"before": self._before, "update": after - self._before, "after": after}
        self.desk.give("block", (k, "block"), given)
        if not self.parts[k]:
            self._add(given["update"])
        self.desk.give("point", (k + 1,), {"state": after, "real": self.batch.real})
        self.current = after

    def close(self) -> None:
        """End the batch, or the block."""
        self.desk.close("block", self.batch.mask)
        self.desk.close("point", self.batch.mask)

    def sum_error(self, final: Tensor) -> float:
        """How far all parts together are from the last state `[B, T, d]`, relative to it."""
        return 0.0 if self.added is None else relative_error(self.added, final[:1])

    def _part_hook(self, path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            n = self._calls.get(path, 0)
            self._calls[path] = n + 1
            part = next((s for s in self.parts[self._k] if (s.path, s.call) == (path, n)), None)
            if part is not None:
                self._part(part, output)

        return hook

    def _part(self, part: Sublayer, output: Any) -> None:
        raw = output if isinstance(output, Tensor) else output[0]
        update = self.stack.layout.tokens(raw) if raw.ndim == self.stack.layout.ndim else in_float(raw)
        update = update.reshape(self._before.shape)
        if part.scale != 1.0:
            update = update * part.scale
        before = self._before if part.parallel else self.current
        self.desk.give("block", (self._k, part.role), {"before": before, "update": update})
        self.current = self.current + update
        self._add(update)

    def _add(self, update: Tensor) -> None:
        if self.added is not None:
            self.added = self.added + update[:1]


class ForwardPass:
    """One batch through the model, with hooks on the user's own blocks and sublayers.

    `replay` is the pass for calling blocks again, where `keeps` says that the states of this batch may be held.
    """

    def __init__(self, stack: Stack, desk: Desk, batch: Batch, keeps: Callable[[Batch], bool], check_sum: bool) -> None:
        """Prepare; `check_sum` also adds up all parts to test that they make the last state. `run` does it."""
        self.stack, self.desk, self.batch, self.keeps = stack, desk, batch, keeps
        self.replay: Replay | None = None
        self.sampled: list[Tensor] = []
        self.last: list[Tensor] = []
        self.structures: list[Any] = []
        self.residual_error = 0.0
        self.output: Any = None
        self._measures = BlockPass(stack, desk, batch, stack.parts, check_sum)

    def run(self) -> None:
        """Run the batch."""
        with self._measures.watching(range(self.stack.depth)), watch_blocks(self.stack, self._enter, self._leave):
            self.output = call(self.stack.model, self.batch.inputs)
        self._measures.close()
        if self.desk.wants("tower"):
            give_tower(self.desk, self.last)
        self.residual_error = self._measures.sum_error(self._measures.current)
        if self.replay is not None:
            self.replay.output = self.output
            self.replay.check()

    def _enter(self, k: int, args: Any, kwargs: Any, state: Tensor) -> None:
        if k == 0:
            self._measures.bottom(state)
            self._note(0, state)
            self.replay = Replay(self.stack, self.batch.inputs, run=False) if self.keeps(self.batch) else None
        if self.replay is not None:
            self.replay.enter(k, args, kwargs, state)
        self._measures.begin(k, state)

    def _leave(self, k: int, output: Any, state: Tensor) -> None:
        self._measures.end(k, state)
        self.structures.append(structure(output))
        if self.replay is not None:
            self.replay.leave(k, output, state)
        self._note(k + 1, state)

    def _note(self, k: int, state: Tensor) -> None:
        """Keep the few tokens that other scopes ask for: the states of all of them together need no room."""
        state = self.stack.layout.tokens(state)
        if self.desk.wants("tower"):
            self.last.append(last_tokens(state, self.batch))
        if self.desk.wants("lens") and self.stack.tokenwise:
            self.sampled.append(sampled_tokens(state, self.batch))
        if self.desk.wants(*collection.SCOPES):
            collection.collect_state(self.desk, self.stack, self.batch, k, state)


def last_tokens(state: Tensor, batch: Batch) -> Tensor:
    """Each sequence's last real token of a state `[B, T, d]`: `[B, d]`."""
    return state[torch.arange(len(state), device=state.device), batch.last]


def give_tower(desk: Desk, last: list[Tensor]) -> None:
    """Feed the measures of the whole tower with every state's last tokens."""
    desk.give("tower", (), {"last_token": torch.stack(last)})
    desk.close("tower", None)
