"""The forward pass: every block's update measured inside a hook, so that only numbers outlive the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.inputs import call
from layerwright.core.replay import Replay, in_float, structure, watch_blocks
from layerwright.core.stack import Stack
from layerwright.maths.similarity import relative_error


class ForwardPass:
    """One batch through the model, with hooks on the user's own blocks and sublayers.

    `replay` is the pass for calling blocks again, where `keeps` says that the states of this batch may be held.
    """

    def __init__(self, stack: Stack, desk: Desk, batch: Batch, keeps: Callable[[Batch], bool]) -> None:
        """Prepare; `run` does it."""
        self.stack, self.desk, self.batch, self.keeps = stack, desk, batch, keeps
        self.replay: Replay | None = None
        self.sampled: list[Tensor] = []
        self.last: list[Tensor] = []
        self.structures: list[Any] = []
        self.residual_error = 0.0
        self.output: Any = None
        self._before: Tensor
        self._current: Tensor
        self._check_sum = False
        self._bottom: Tensor
        self._added: Tensor | None = None
        self._calls: dict[str, int] = {}
        self._k = 0

    def run(self, check_sum: bool) -> None:
        """Run the batch; `check_sum` also adds up all parts to test that they make the last state."""
        self._check_sum = check_sum
        handles = []
        try:
            for b, block in enumerate(self.stack.blocks):
                paths = {s.path for k, parts in enumerate(self.stack.parts) if self.stack.order[k] == b for s in parts}
                for path in sorted(paths):
                    handles.append(block.get_submodule(path).register_forward_hook(self._part_hook(path)))
            with watch_blocks(self.stack, self._enter, self._leave):
                output = call(self.stack.model, self.batch.inputs)
        finally:
            for handle in handles:
                handle.remove()
        mask = self.batch.mask
        self.desk.close("block", mask)
        self.desk.close("point", mask)
        if self.desk.wants("tower"):
            self.desk.give("tower", (), {"last_token": torch.stack(self.last)})
            self.desk.close("tower", None)
        if check_sum:
            self._finish_sum()
        self.output = output
        if self.replay is not None:
            self.replay.output = output
            self.replay.check()

    def _enter(self, k: int, args: Any, kwargs: Any, state: Tensor) -> None:
        x = self.stack.layout.tokens(state)
        if k == 0:
            self.batch.settle(x, state)
            self._bottom = x
            self._point(0, x)
            self.replay = Replay(self.stack, self.batch.inputs, run=False) if self.keeps(self.batch) else None
        if self.replay is not None:
            self.replay.enter(k, args, kwargs, state)
        self._before = self._current = x
        self._k = k
        self._calls = {}

    def _leave(self, k: int, output: Any, state: Tensor) -> None:
        after = self.stack.layout.tokens(state)
        given = {"before": self._before, "update": after - self._before, "after": after}
        self.desk.give("block", (k, "block"), given)
        if self._check_sum and not self.stack.parts[k]:
            self._add(given["update"])
        self.structures.append(structure(output))
        if self.replay is not None:
            self.replay.leave(k, output, state)
        self._point(k + 1, after)
        self._current = after

    def _part_hook(self, path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            n = self._calls.get(path, 0)
            self._calls[path] = n + 1
            part = next((s for s in self.stack.parts[self._k] if (s.path, s.call) == (path, n)), None)
            if part is not None:
                self._part(part, output)

        return hook

    def _part(self, part: Any, output: Any) -> None:
        raw = output if isinstance(output, Tensor) else output[0]
        update = self.stack.layout.tokens(raw) if raw.ndim == self.stack.layout.ndim else in_float(raw)
        update = update.reshape(self._before.shape)
        if part.scale != 1.0:
            update = update * part.scale
        before = self._before if part.parallel else self._current
        self.desk.give("block", (self._k, part.role), {"before": before, "update": update})
        self._current = self._current + update
        if self._check_sum:
            self._add(update)

    def _add(self, update: Tensor) -> None:
        """Sum of all parts in float64, for one sequence: enough to tell a wrong part from rounding."""
        one = update[:1].double()
        self._added = one if self._added is None else self._added + one

    def _finish_sum(self) -> None:
        if self._added is not None:
            self.residual_error = relative_error(self._bottom[:1] + self._added, self._current[:1])

    def _point(self, k: int, state: Tensor) -> None:
        self.desk.give("point", (k,), {"state": state})
        n = torch.arange(len(state), device=state.device)
        if self.desk.wants("tower"):
            self.last.append(state[n, self.batch.last])
        if self.desk.wants("lens") and self.stack.tokenwise:
            self.sampled.append(state[n[:, None], self.batch.sampled])
