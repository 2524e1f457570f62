"""Every single-block skip in one walk up the tower.

When block s is skipped, the stream below it is that of the unchanged model, so the skipped stream starts at block s
and is carried up beside the others: L(L-1)/2 block calls instead of the L·L of a loop of full forwards, and exactly the
same numbers, because each block is called with the arguments it was called with.

Two kinds of stream are carried. `later`: block s is bypassed at every token but the first of a causal model, which acts
as an attention sink. `future` (causal models): it is bypassed before a random token t_s only, and measured from t_s
on, so that what is seen is what the block did for later tokens.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from layerwright.core.batch import Batch, generator_for
from layerwright.core.desk import Desk, Numbers, join
from layerwright.core.reduce import Key
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack

# By skipped block and kind; in memory, or on disk where they are many.
Streams = MutableMapping[tuple[int, str], Tensor]


class SkipPass:
    """The skip measures on one batch."""

    def __init__(self, stack: Stack, desk: Desk, batch: Batch, replay: Replay, seed: int) -> None:
        """Prepare; `run` does it."""
        self.stack, self.desk, self.batch, self.replay = stack, desk, batch, replay
        self.split = self._splits(seed)
        self.kinds = ["later", "future"] if self.split is not None else ["later"]

    def run(self, progress: Callable[[int], None]) -> None:
        """Walk up the tower with all skip streams; `progress` gets the number of block calls made."""
        streams: Streams = {}
        for k in range(self.stack.depth):
            self.step(k, streams)
            progress(len(streams))
        self.close()
        self.answer(streams)

    def step(self, k: int, streams: Streams) -> None:
        """Carry every stream through block application `k`, and start those that skip it."""
        state, after = self.replay.states[k], self.replay.states[k + 1]
        update = self.stack.layout.tokens(after) - self.stack.layout.tokens(state)
        for source, kind in list(streams):
            streams[source, kind] = self._carry(k, source, kind, streams[source, kind], update)
        for kind in self.kinds:
            keep = self.stack.layout.token_mask(self._kept(kind), state)
            streams[k, kind] = torch.where(keep, after, state)

    def _carry(self, k: int, source: int, kind: str, state: Tensor, update: Tensor) -> Tensor:
        after = self.replay.block(k, state)
        if self.desk.wants("skip"):
            skipped = self.stack.layout.tokens(after) - self.stack.layout.tokens(state)
            self._give(kind, (source, k, kind), {"update": update, "skipped_update": skipped})
        return after

    def close(self) -> None:
        """End the batch, or the block."""
        self.desk.close("skip", self.batch.mask)

    def answer(self, streams: Streams) -> None:
        """What the model answers at the top of every stream."""
        if self.desk.wants("skip_output") and self.stack.head is not None:
            self._outputs(streams)
            self.desk.close("skip_output", self.batch.mask if self.stack.head == "token" else None)

    def _splits(self, seed: int) -> Tensor | None:
        """A token t_s of each sequence, 8 to 4 tokens from its ends where it is long enough; None if not causal."""
        if not self.stack.causal:
            return None
        split = self.batch.real.int().argmax(1).cpu()  # counted from the first token, whatever padding is before it
        for b, last in enumerate((self.batch.last.cpu() - split).tolist()):
            low, high = min(8, max(1, last // 2)), max(2, last - 4)
            draw = torch.rand((), generator=generator_for(seed, self.batch.first + b, -1))
            split[b] += low + int(draw * max(1, high - low))
        return split.to(self.batch.last.device)

    def _kept(self, kind: str) -> Tensor:
        """Tokens at which the skipped block still acts."""
        place = torch.arange(self.batch.mask.shape[1], device=self.batch.mask.device).expand(self.batch.mask.shape)
        first = self.batch.real & (torch.cumsum(self.batch.real, 1) == 1) if self.stack.causal else place < 0
        return first if kind == "later" else first | (place >= self._split_column())

    def _split_column(self) -> Tensor:
        assert self.split is not None
        return self.split[:, None]

    def _seen(self, kind: str, numbers: Numbers) -> Numbers:
        """Narrow the tokens that count to those at which a kind of skip is measured."""
        if kind == "later":
            return numbers
        place = torch.arange(self.batch.mask.shape[1], device=self.batch.mask.device)
        seen = place >= self._split_column()
        return Numbers(numbers.values, seen if numbers.where is None else seen & numbers.where)

    def _give(self, kind: str, key: tuple[int, int, str], given: dict[str, Tensor]) -> None:
        for (name, more), numbers in self.desk.evaluate("skip", given).items():
            self.desk.add(name, (*key, *more), self._seen(kind, numbers))

    def _outputs(self, streams: Streams) -> None:
        """Compare outputs a few sequences at a time: logits over a large vocabulary are the largest tensors here."""
        found: dict[tuple[str, int, str, Key], list[Numbers]] = {}
        for few in self.replay.few_sequences():
            base, labels = self._decode(self.replay.states[-1], few), self._labels(few)
            for (source, kind), state in streams.items():
                changed = self._decode(state, few)
                target = torch.full(base.shape[:2], -100, device=base.device) if labels is None else labels
                given = {"log_probabilities": base, "skipped_log_probabilities": changed, "labels": target}
                prefix = "" if kind == "later" else "future_"
                for (name, more), numbers in self.desk.evaluate("skip_output", given, prefix).items():
                    found.setdefault((name, source, kind, more), []).append(numbers)
        for (name, source, kind, more), pieces in found.items():
            self.desk.add(name, (source, *more), self._seen(kind, join(pieces)))

    def _decode(self, state: Tensor, sequences: Tensor) -> Tensor:
        """Log-probabilities `[B, T, V]` (or `[B, 1, K]`) of some sequences, had the tower ended in `state`.

        Floored at -10,000, so that a class ruled out by both distributions adds nothing to their divergence.
        """
        return self.replay.logits(state, sequences).log_softmax(-1).clamp_min_(-1e4)

    def _labels(self, sequences: Tensor) -> Tensor | None:
        labels = self.batch.labels(self.stack)
        return None if labels is None else labels[sequences]
