"""What blocks compute inside, on one batch: each is called once more, and its attention and activations are watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from layerwright.core.attention import AttentionCall, self_attention
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk, Numbers, join
from layerwright.core.hidden import HiddenFinder, by_token, out_weight, reading
from layerwright.core.reduce import Key
from layerwright.core.replay import Replay, in_float
from layerwright.core.sharded import gathers
from layerwright.core.stack import Stack

SCOPES = ("attention", "hidden")
# Sequences that are measured, the first ones: it costs more than the block itself, and a few say what a head does.
_SEQUENCES = 16
# Probabilities held at once: 256 MB in float32.
_AT_ONCE = 2**26
# Tokens of each sequence whose activations are given: the measures multiply them many times over.
_TOKENS = 16


class InsidePass:
    """The measures of attention and of hidden activations, on the first sequences.

    Blocks that have neither give nothing.
    """

    def __init__(self, stack: Stack, desk: Desk, batch: Batch, replay: Replay, finder: HiddenFinder) -> None:
        """Prepare; `run` does it. One `finder` serves all batches."""
        self.stack, self.desk, self.batch, self.replay, self.finder = stack, desk, batch, replay, finder

    def run(self, progress: Callable[[int], None]) -> None:
        """Go through the blocks; `progress` gets the number of blocks done."""
        for k in range(self.stack.depth):
            self.step(k)
            progress(1)
        self.close()

    def step(self, k: int) -> None:
        """Call block application `k` on its state, and feed the measures."""
        block = self.stack.blocks[self.stack.order[k]]
        if not len(self._few()) and not gathers(block):  # a call that gathers weights is one of all ranks
            return
        state, run = self.replay.states[k], partial(self.replay.block, k)
        module = self.finder.of(k, self.replay) if self.desk.wants("hidden") else None
        read: list[Tensor] = []
        calls: list[AttentionCall] = []
        with ExitStack() as watching:
            if module is not None:
                watching.enter_context(reading(module, read))
            if self.desk.wants("attention"):
                calls = self_attention(run, state)
            elif module is not None:
                run(state)
        self._attention(k, [call for call in calls if self._fits(call)])
        if module is not None and len(read) == 1:
            self._hidden(k, module, read[0])

    def close(self) -> None:
        """End the batch, or the block."""
        for scope in SCOPES:
            self.desk.close(scope, None)

    def _fits(self, call: AttentionCall) -> bool:
        """Whether it is from all tokens to all tokens, a sequence after another."""
        tokens = self.batch.real.shape[1]
        return call.shape[-2:] == (tokens, tokens) and len(call.shape) > 2 and call.shape[0] % self.batch.size == 0

    def _attention(self, k: int, calls: list[AttentionCall]) -> None:
        """Give the probabilities of a few sequences at a time; heads of several calls follow one another."""
        if not calls or not len(self._few()):
            return
        found: dict[tuple[str, Key], list[Numbers]] = {}
        each = sum(torch.Size(call.shape).numel() for call in calls) // self.batch.size
        for some in self._few().split(max(1, _AT_ONCE // each)):
            start, stop = int(some[0]), int(some[-1]) + 1
            heads = torch.cat([self._heads(call, start, stop) for call in calls], dim=1)
            for row, numbers in self.desk.evaluate("attention", {"attention": heads}).items():
                found.setdefault(row, []).append(numbers)
        for (name, more), pieces in found.items():
            self.desk.add(name, (k, *more), join(pieces))

    def _heads(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Of some sequences, `[b, H, T, T]`, zero at padding."""
        rows, real = call.shape[0] // self.batch.size, self.batch.real[start:stop]
        probabilities = call.probabilities(slice(start * rows, stop * rows)).detach()
        probabilities = probabilities.reshape(stop - start, -1, *probabilities.shape[-2:])
        return torch.where(real[:, None, :, None], probabilities, 0.0)

    def _hidden(self, k: int, module: nn.Module, x: Tensor) -> None:
        """Give what the last matrix of the feed-forward part read at a few tokens, where it read a row for each."""
        rows, few, weight = by_token(x, self.stack.layout, self.batch.real), self._few(), out_weight(module, x)
        if rows is None or not len(few):
            return
        places, there = (drawn[few, :_TOKENS] for drawn in (self.batch.collected, self.batch.collected_mask))
        hidden = torch.where(there[..., None], in_float(rows[few[:, None], places]), 0.0)
        self.desk.give("hidden", (k,), {"hidden": hidden, "hidden_tokens": there, "out_weight": weight})

    def _few(self) -> Tensor:
        """Places in the batch of the sequences that are measured."""
        return self.batch.few(_SEQUENCES)
