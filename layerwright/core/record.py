"""One pass over the data that gives every measure what its arguments name, and turns the numbers into tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from layerwright.core.backward import BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.forward import ForwardPass, sampled_tokens
from layerwright.core.inputs import Inputs, on_device, small
from layerwright.core.lens import lens_of_sequences, lens_of_tokens
from layerwright.core.quiet import undisturbed
from layerwright.core.reduce import Key, Reduced
from layerwright.core.registry import Measure
from layerwright.core.replay import Replay, in_float, read_logits
from layerwright.core.skips import SkipPass
from layerwright.core.stack import Stack
from layerwright.core.table import derived_columns, replicate_fields, table
from layerwright.core.table import field as measured_field
from layerwright.core.weights import nonfinite_weights, weight_pass
from layerwright.maths.similarity import relative_error

# States held at once by the walks up and down the tower.
_STATE_BYTES = 2**30
LENS_TOKENS = 256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """A self-test of the survey: what was compared, how far apart it was, and how far it may be."""

    name: str
    error: float
    tolerance: float
    passed: bool
    note: str


@dataclass
class Recording:
    """What a pass gave: tables by name, self-tests, notes on what could not be measured, tokens counted."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sequences: int = 0
    tokens: int = 0


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
    """
    return _Recorder(stack, measures, options or {}, sequences, prefix, seed, progress).run(batches)


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
    ) -> None:
        self.stack, self.measures, self.options, self.seed = stack, measures, options, seed
        self.sequences, self.prefix, self.progress = sequences, prefix, progress
        self.desk = Desk(measures, options)
        self.sample = -(-LENS_TOKENS // (sequences or 32))
        self.out = Recording()
        self.errors: dict[str, float] = {}

    def run(self, batches: Iterable[Inputs]) -> Recording:
        self.out.notes += nonfinite_weights(self.stack)
        with undisturbed(self.stack.model), torch.no_grad():
            for inputs in batches:
                self._batch(inputs)
            if self.desk.wants("weight"):
                for b in weight_pass(self.stack, self.desk):
                    self.progress("weights", b + 1, len(self.stack.blocks))
        self._checks()
        self._tables()
        return self.out

    def _batch(self, inputs: Inputs) -> None:
        own = isinstance(inputs, Mapping) and "decoder_input_ids" in inputs and self.stack.causal
        side = "decoder_" if own else ""
        batch = Batch(
            on_device(inputs, self.stack.model), self.out.sequences, self.prefix, self.sample, self.seed, side
        )
        first = self.out.sequences == 0
        # Weights-only surveys need no forward pass, but the tables must still count the tokens of any data given.
        forward = ForwardPass(self.stack, self.desk, batch, self._keeps, check_sum=first)
        forward.run()
        if self.desk.wants("lens") and self.stack.tokenwise:
            logits = read_logits(forward.output, batch.native)
            assert logits is not None
            args = (forward.sampled, forward.structures, in_float(sampled_tokens(logits, batch)))
            self._note_error("lens", lens_of_tokens(self.stack, self.desk, batch, *args))
        self._note_error("sum", forward.residual_error)
        if self._deep:
            self._again(batch, forward.replay)
            if first:
                self._note_error("replay", self._replay_error(Replay(self.stack, small(batch.inputs))))
        self.out.sequences += batch.size
        self.out.tokens += int(batch.mask.sum())
        self.progress("forward", self.out.sequences, self.sequences or self.out.sequences)

    @property
    def _deep(self) -> bool:
        """Whether any measure needs blocks to be called again."""
        lens = self.desk.wants("lens") and self.stack.head is not None and not self.stack.tokenwise
        return lens or self.desk.wants("skip", "skip_output", "gradient", "jacobian")

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
            self._note_error("lens", lens_of_sequences(self.desk, part, replay))
        replay.output = None  # the logits can be the largest tensor of all
        if self.desk.wants("skip", "skip_output"):
            SkipPass(self.stack, self.desk, part, replay, self.seed).run(self._step("skips", part))
        if self.desk.wants("gradient", "jacobian"):
            BackwardPass(self.stack, self.desk, part, replay, self.seed).run(self._step("gradients", part))

    def _step(self, stage: str, part: Batch) -> Callable[[int], None]:
        depth, total = self.stack.depth, self.sequences or part.first + part.size
        done = 0

        def step(n: int) -> None:
            nonlocal done
            done += 1
            self.progress(stage, part.first * depth + done * part.size, total * depth)

        return step

    def _replay_error(self, replay: Replay) -> float:
        state = replay.states[0]
        for k in range(self.stack.depth):
            state = replay.block(k, state)
        return relative_error(state.float(), replay.states[-1].float())

    def _note_error(self, name: str, error: float) -> None:
        self.errors[name] = max(error, self.errors.get(name, 0.0))

    def _checks(self) -> None:
        dtype = next((p.dtype for p in self.stack.model.parameters() if p.is_floating_point()), torch.float32)
        # Rounding adds up over the blocks; a wrong part is off by the size of an update, far more than this.
        tolerance = max(8 * torch.finfo(dtype).eps, 1e-5)
        names = {
            "sum": ("h₀ + Σ updates = h_L", "the parts measured add up to the stream"),
            "lens": ("lens(h_L) = logits", "decoding the last state gives the model's own output"),
            "replay": ("blocks called again = forward pass", "skips and gradients see the same model"),
        }
        for name, error in self.errors.items():
            title, note = names[name]
            self.out.checks.append(Check(title, error, tolerance, bool(error <= tolerance), note))

    def _tables(self) -> None:
        reduced: dict[str, Reduced] = {}
        for m in self.measures:
            if m.scope == "table":
                self._derived(m, reduced)
                continue
            result = self.desk.reducers[m.name].finish()
            if not result.keys:
                self.out.notes.append(f"{m.name} could not be measured: {self._reason(m)}")
                continue
            reduced[m.name] = result
            columns = {"value": result.mean()} if m.scope == "weight" else dict(result.columns(self.seed))
            frame = table(m.index, result.keys, columns, m.meta())
            if m.scope != "weight":
                frame = frame[(frame["tokens"] > 0) | (frame["nonfinite"] > 0)]
                self._mark_nonfinite(m, frame)
            numbers = [c for c in m.index if c not in ("part", "quantity", "matrix")]
            self.out.tables[m.name] = frame.sort_values(numbers, kind="stable", ignore_index=True)

    def _derived(self, m: Measure, reduced: dict[str, Reduced]) -> None:
        if any(need not in reduced for need in m.needs):
            missing = ", ".join(need for need in m.needs if need not in reduced)
            self.out.notes.append(f"{m.name} could not be computed: it reads from {missing}")
            return
        options = self.options.get(m.name, {})
        indices = {need: next(x.index for x in self.measures if x.name == need) for need in m.needs}
        fields = [measured_field(indices[n], reduced[n]) for n in m.needs]
        value = m.function(*fields, **options)
        replicates = [replicate_fields(f, reduced[n], self.seed) for f, n in zip(fields, m.needs, strict=True)]
        again = [m.function(*given, **options) for given in zip(*replicates, strict=False)]
        keys: list[Key] = [(name,) for name in value]
        columns = derived_columns(np.array([*value.values()], dtype=float), [np.array([*a.values()]) for a in again])
        self.out.tables[m.name] = table(m.index, keys, columns, m.meta())

    def _reason(self, m: Measure) -> str:
        if m.scope in ("lens", "skip_output") and self.stack.head is None:
            return "the model gives no logits for the tokens of these blocks"
        if m.scope == "gradient":
            return "the data holds no labels for this model's output"
        if m.scope == "weight":
            return "the blocks hold no weight matrix"
        return "no block of this model supplies " + ", ".join(m.needs)

    def _mark_nonfinite(self, m: Measure, frame: pd.DataFrame) -> None:
        touched = frame[frame["nonfinite"] > 0]
        if len(touched):
            column = next((c for c in ("block", "point", "source") if c in frame), None)
            where = f" ({column} {', '.join(map(str, sorted(set(touched[column]))[:8]))})" if column else ""
            self.out.notes.append(f"{m.name}: {len(touched)} rows met NaN or infinite numbers{where}")
