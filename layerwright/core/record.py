"""One pass over the data that gives every measure what its arguments name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from layerwright.core import backward, collection, curvature, expansion, inside
from layerwright.core.backward import BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.forward import ForwardPass
from layerwright.core.hidden import HiddenFinder
from layerwright.core.inputs import Inputs, batch_size, in_pairs, on_device, small
from layerwright.core.lens import lens_of_sequences, lens_of_tokens, sampled_tokens
from layerwright.core.packet import Packet
from layerwright.core.quiet import undisturbed
from layerwright.core.ranks import Ranks
from layerwright.core.recording import Recording
from layerwright.core.registry import Measure
from layerwright.core.replay import Replay, in_float, read_logits
from layerwright.core.skips import SkipPass
from layerwright.core.stack import Stack
from layerwright.core.weights import give_weights, nonfinite_weights
from layerwright.maths.similarity import relative_error

# States held at once by the walks up and down the tower.
_STATE_BYTES = 2**30
_ALONE = Ranks()

Progress = Callable[[str, int, int], None]


def record(
    stack: Stack,
    batches: Iterable[Inputs],
    measures: list[Measure],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    sequences: int | None = None,
    prefix: int = 0,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
    ranks: Ranks = _ALONE,
) -> Recording:
    """Run every measure over the data.

    Args:
        stack: the model and its tower.
        batches: the data, as the model takes it.
        measures: what to measure, each after those it reads from.
        options: keyword options by measure.
        sequences: number of sequences in the data, where it is known.
        prefix: leading tokens of each sequence that are left out of all statistics.
        seed: seeds the sampled tokens, probes, split points and bootstrap.
        progress: called with the stage, the work done and the work to do.
        ranks: the processes that hold the model; they share the batches, and each gets the whole recording.
    """
    recorder = _Recorder(stack, measures, options or {}, sequences, prefix, seed, progress, ranks)
    if ranks.size > 1:
        return join_parts(stack, recorder.parts(list(batches)), measures, options=options, seed=seed)
    if recorder.desk.wants(curvature.SCOPE):
        batches = list(batches)
    recorder.batches(batches, 0)
    recorder.weights()
    recorder.curvature(batches)
    recorder.out.finish(stack, recorder.desk, seed)
    return recorder.out


def record_part(
    stack: Stack,
    batches: Iterable[Inputs],
    first: int,
    measures: list[Measure],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    sequences: int,
    prefix: int = 0,
    seed: int = 0,
    weights: bool = False,
) -> Packet:
    """What some batches of a survey give, for `join_parts`: work for one of several workers.

    Args:
        stack: the model and its tower.
        batches: some of the data.
        first: number in the whole data of their first sequence, which seeds what is random about them.
        measures: as in `record`, and so the rest.
        options: keyword options by measure.
        sequences: number of sequences in the whole data.
        prefix: leading tokens of each sequence that are left out.
        seed: of the survey.
        weights: measure the weights as well; one part does.
    """
    recorder = _Recorder(stack, measures, options or {}, sequences, prefix, seed, lambda stage, done, total: None)
    recorder.batches(batches, first)
    if weights:
        recorder.weights()
    return recorder.take()


def join_parts(
    stack: Stack,
    parts: Iterable[Packet],
    measures: list[Measure],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Recording:
    """The recording of a survey from its parts, in the order of their sequences."""
    desk, out = Desk(measures, options or {}), Recording()
    for part in parts:
        desk.put(part)
        out.add(part)
    out.finish(stack, desk, seed)
    return out


class _Recorder:
    def __init__(
        self,
        stack: Stack,
        measures: list[Measure],
        options: Mapping[str, Mapping[str, Any]],
        sequences: int | None,
        prefix: int,
        seed: int,
        progress: Progress,
        ranks: Ranks = _ALONE,
    ) -> None:
        self.stack, self.seed, self.ranks = stack, seed, ranks
        self.sequences, self.prefix, self.progress = sequences, prefix, progress
        self.desk = Desk(measures, options)
        self.out = Recording()
        self.first = 0
        self.waiting: backward.Waiting = {}
        self.finder = HiddenFinder(stack)

    def batches(self, batches: Iterable[Inputs], first: int) -> None:
        """Let batches through the model; `first` is the number of their first sequence in the data."""
        self.first = first
        with undisturbed(self.stack.model), torch.no_grad():
            for inputs in batches:
                self._batch(inputs)
                if self.first == batch_size(inputs) and self.ranks.size == 1:
                    self._test_replay(inputs)

    def weights(self) -> None:
        """Measure every distinct block's matrices, and look for numbers that are not finite.

        Ranks help each other to gather them, and each measures some of the blocks.
        """
        for b in range(len(self.stack.blocks)):
            notes = nonfinite_weights(self.stack, b)
            self.out.notes += notes if self.ranks.leads else []
            if self.desk.wants("weight"):
                mine = b % self.ranks.size == self.ranks.rank
                give_weights(self.stack, self.desk if mine else None, b)
                self.progress("weights", b + 1, len(self.stack.blocks))

    def curvature(self, batches: Iterable[Inputs]) -> None:
        """Measure how the loss bends, where that was asked for: on the first sequences only."""
        groups = len(self.stack.blocks) + 1
        done = 0

        def step(n: int) -> None:
            nonlocal done
            done += n
            self.progress("curvature", done, groups)

        self.out.notes += curvature.give_curvature(self.stack, self.desk, batches, self.seed, step, prefix=self.prefix)

    def take(self) -> Packet:
        """All that was measured so far, to start again."""
        numbers, about = self.desk.take(), self.out.to_packet()
        self.out = Recording()
        return Packet({**numbers.data, **about.data}, {**numbers.tensors, **about.tensors})

    def parts(self, batches: list[Inputs]) -> Iterator[Packet]:
        """What all ranks find, in the order of the data, then the tests and weights that they do together."""

        def part(few: list[Inputs], first: int) -> Packet:
            self.batches(few, first)
            return self.take()

        yield from self.ranks.map(in_pairs(batches), part)
        with undisturbed(self.stack.model), torch.no_grad():
            self._test_replay(batches[0])
        self.weights()
        yield from self.ranks.gather(self.take())

    def _batch(self, inputs: Inputs) -> None:
        inputs = on_device(inputs, self.stack.model)
        batch = Batch.of(self.stack, inputs, self.first, self.prefix, self.sequences, self.seed)
        # Weights-only surveys need no forward pass, but the tables must still count the tokens of any data given.
        forward = ForwardPass(self.stack, self.desk, batch, self._keeps, check_sum=self.first == 0)
        forward.run()
        if self.desk.wants("lens") and self.stack.tokenwise:
            logits = read_logits(forward.output, batch.native)
            assert logits is not None
            args = (forward.sampled, forward.structures, in_float(sampled_tokens(logits, batch)))
            self.out.note_error("lens", lens_of_tokens(self.stack, self.desk, batch, *args))
        self.out.note_error("sum", forward.residual_error)
        if self._deep:
            self._again(batch, forward.replay)
        # Autocast and FSDP2 may compute in a coarser dtype than that of the weights.
        self.out.rounding = max(self.out.rounding, torch.finfo(batch.native.dtype).eps)
        self.first += batch.size
        self.out.sequences += batch.size
        self.out.tokens += int(batch.mask.sum())
        self.progress("forward", self.first, self.sequences or self.first)

    @property
    def _deep(self) -> bool:
        """Whether any measure needs blocks to be called again."""
        lens = self.desk.wants("lens") and self.stack.head is not None and not self.stack.tokenwise
        walks = (*backward.SCOPES, *collection.SCOPES, *inside.SCOPES, expansion.SCOPE)
        return lens or self.desk.wants("skip", "skip_output", *walks)

    def _keeps(self, batch: Batch) -> bool:
        """Whether the states of a batch are held for the walks after the forward pass."""
        return self._deep and self._at_once(batch) >= batch.size

    def _at_once(self, batch: Batch) -> int:
        """How many sequences the walks may hold the states of."""
        state = batch.native.element_size() * batch.native.numel() // batch.size
        return max(1, _STATE_BYTES // (state * (3 * self.stack.depth + 1)))

    def _again(self, batch: Batch, replay: Replay | None) -> None:
        """The walks that call blocks again, over the whole batch where its states are held, or over parts of it."""
        if replay is not None:
            self._walk(batch, replay)
            return
        step = self._at_once(batch)
        for start in range(0, batch.size, step):
            part = batch.part(start, min(start + step, batch.size))
            replay = Replay(self.stack, part.inputs)
            part.settle(self.stack.layout.tokens(replay.states[0]), replay.states[0])
            self._walk(part, replay)

    def _walk(self, part: Batch, replay: Replay) -> None:
        if self.desk.wants("lens") and self.stack.head is not None and not self.stack.tokenwise:
            self.out.note_error("lens", lens_of_sequences(self.desk, part, replay))
        if self.desk.wants(*collection.SCOPES):
            collection.collect_batch(self.desk, self.stack, part, replay)
        replay.output = None  # the logits can be the largest tensor of all
        if self.desk.wants("skip", "skip_output"):
            SkipPass(self.stack, self.desk, part, replay, self.seed).run(self._step("skips", part))
        if self.desk.wants(*inside.SCOPES):
            inside.InsidePass(self.stack, self.desk, part, replay, self.finder).run(self._step("inside", part))
        if self.desk.wants(expansion.SCOPE):
            self.out.notes += expansion.give_expansion(self.stack, self.desk, part, replay)
        if self.desk.wants(*backward.SCOPES):
            downs = BackwardPass(self.stack, self.desk, part, replay, self.seed, self.waiting)
            downs.run(self._step("gradients", part))

    def _step(self, stage: str, part: Batch) -> Callable[[int], None]:
        depth, total = self.stack.depth, self.sequences or part.first + part.size
        done = 0

        def step(n: int) -> None:
            nonlocal done
            done += 1
            self.progress(stage, part.first * depth + done * part.size, total * depth)

        return step

    def _test_replay(self, inputs: Inputs) -> None:
        """Hold a few tokens' way through blocks that are called again against their forward pass."""
        if not self._deep:
            return
        replay = Replay(self.stack, small(on_device(inputs, self.stack.model)))
        state = replay.states[0]
        for k in range(self.stack.depth):
            state = replay.block(k, state)
        self.out.note_error("replay", relative_error(state.float(), replay.states[-1].float()))
