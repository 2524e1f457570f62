"""What a pass over the data gave: tables, self-tests and notes, whichever engine fed the measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from layerwright.core.backward import OF_LOSS
from layerwright.core.collection import SCOPES, collected
from layerwright.core.desk import Desk
from layerwright.core.errors import UserError
from layerwright.core.factors import unread
from layerwright.core.inside import SCOPES as SCOPES_INSIDE
from layerwright.core.packet import Packet
from layerwright.core.reduce import Key, Reduced
from layerwright.core.registry import Measure
from layerwright.core.stack import Stack
from layerwright.core.table import derived_columns, estimates, replicate_fields, table
from layerwright.core.table import field as measured_field

# What the self-tests compare, by the name under which their errors are noted.
_CHECKS = {
    "sum": ("h₀ + Σ updates = h_L", "the parts measured add up to the stream"),
    "lens": ("lens(h_L) = logits", "decoding the last state gives the model's own output"),
    "replay": ("blocks called again = forward pass", "skips and gradients see the same model"),
    "walk": ("block by block = forward pass", "the model taken apart, with random weights, gives what it gives whole"),
}


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
    """What a pass gave: tables by name, self-tests, notes on what could not be measured, tokens counted.

    `errors` are those of the self-tests, `rounding` is the machine epsilon of the coarsest stream met; `collected` are
    the states that were kept, and `pairs` the measures that want to see those of another recording beside them;
    `reduced` is what the tables of means were made from.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sequences: int = 0
    tokens: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    collected: dict[str, torch.Tensor] = field(default_factory=dict)
    pairs: list[Measure] = field(default_factory=list)
    reduced: dict[str, Reduced] = field(default_factory=dict)
    rounding: float = 0.0

    def note_error(self, name: str, error: float) -> None:
        """The error of a self-test on some batch; the largest counts."""
        self.errors[name] = max(error, self.errors.get(name, 0.0))

    def to_packet(self) -> Packet:
        """Everything but what is made at the end."""
        names = ("notes", "sequences", "tokens", "rounding")
        data = {name: getattr(self, name) for name in names} | {"errors": list(self.errors)}
        return Packet(data, {"errors": torch.tensor([*self.errors.values()], dtype=torch.float64)})

    def add(self, packet: Packet) -> None:
        """Take in what another recording of the same survey put into a packet."""
        self.notes += packet.data["notes"]
        self.sequences += packet.data["sequences"]
        self.tokens += packet.data["tokens"]
        self.rounding = max(self.rounding, packet.data["rounding"])
        for name, error in zip(packet.data["errors"], packet.tensors["errors"].tolist(), strict=True):
            self.note_error(name, error)

    def finish(self, stack: Stack, desk: Desk, seed: int) -> None:
        """Turn what was reduced into tables, and errors into checks."""
        dtype = next((p.dtype for p in stack.model.parameters() if p.is_floating_point()), torch.float32)
        # Rounding adds up over the blocks; a wrong part is off by the size of an update, far more than this.
        tolerance = max(8 * torch.finfo(dtype).eps, 8 * self.rounding, 1e-5)
        for name, error in self.errors.items():
            title, note = _CHECKS[name]
            self.checks.append(Check(title, error, tolerance, bool(error <= tolerance), note))
        _Tables(self, stack, desk, seed).make()

    def measure_collection(
        self, m: Measure, options: Mapping[str, Any], other: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Let a measure see the states that were kept, and those of the other survey."""
        known = self.collected | {f"other_{name}": x for name, x in (other or self.collected).items()}
        missing = [need for need in m.needs if need not in known]
        try:
            if missing:
                raise UserError(f"this model supplies no {', '.join(missing)}")
            found = m.function(*(known[need] for need in m.needs), **options)
        except UserError as error:
            self.notes.append(f"{m.name} could not be measured: {error}")
            return
        self.tables[m.name] = estimates(m.index, found, m.meta())


class _Tables:
    def __init__(self, out: Recording, stack: Stack, desk: Desk, seed: int) -> None:
        self.out, self.stack, self.desk, self.seed = out, stack, desk, seed
        self.measures: Sequence[Measure] = desk.measures
        self.options: Mapping[str, Mapping[str, Any]] = desk.options

    def make(self) -> None:
        reduced = self.out.reduced
        for m in self.measures:
            if m.scope == "table":
                self._derived(m, reduced)
                continue
            if m.scope in SCOPES:
                self.out.collected = self.out.collected or collected(self.desk, self.stack.depth)
                if m.scope == "collection":
                    self.out.measure_collection(m, self.options.get(m.name, {}))
                else:
                    self.out.pairs.append(m)
                continue
            result = self.desk.reducers[m.name].finish()
            if not result.keys:
                self._unmeasured(m)
                continue
            reduced[m.name] = result
            single = m.scope in ("weight", "curvature")  # one number a row, of no sequence
            columns = {"value": result.mean()} if single else dict(result.columns(self.seed))
            frame = table(m.index, result.keys, columns, m.meta())
            if m.scope == "matrix":
                self._name_unread(m, result.keys)
            if not single:
                frame = frame[(frame["tokens"] > 0) | (frame["nonfinite"] > 0)]
                self._mark_nonfinite(m, frame)
            numbers = [c for c in m.index if pd.api.types.is_numeric_dtype(frame[c])]
            if numbers and m.scope != "curvature":
                frame = frame.sort_values(numbers, kind="stable", ignore_index=True)
            self.out.tables[m.name] = frame

    def _unmeasured(self, m: Measure) -> None:
        """Say why, where the pass has not; parts of a survey may have said it several times."""
        start = f"{m.name} could not be measured: "
        said = dict.fromkeys(note for note in self.out.notes if note.startswith(start)) or [start + self._reason(m)]
        self.out.notes[:] = [note for note in self.out.notes if note not in said] + [*said]

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
        keys: list[Key] = [name if isinstance(name, tuple) else (name,) for name in value]
        columns = derived_columns(np.array([*value.values()], dtype=float), [np.array([*a.values()]) for a in again])
        self.out.tables[m.name] = table(m.index, keys, columns, m.meta())

    def _name_unread(self, m: Measure, keys: Sequence[Key]) -> None:
        """Say which weights' gradients have no token factors for each sequence, as those of experts in one tensor."""
        blocks = {self.stack.blocks[self.stack.order[k]]: k for k in range(self.stack.depth)}
        left = {
            name: k
            for block, k in blocks.items()
            for name in unread(block, [str(matrix) for at, matrix, *_ in keys if at == k])
        }
        if left:
            listed = ", ".join(f"{name} of block {k}" for name, k in [*left.items()][:4])
            more = " and others" if len(left) > 4 else ""
            why = "no linear module or convolution of its own applies them to one sequence at a time"
            self.out.notes.append(f"{m.name} leaves out {listed}{more}: {why}")

    def _reason(self, m: Measure) -> str:
        if m.scope in ("lens", "skip_output") and self.stack.head is None:
            return "the model gives no logits for the tokens of these blocks"
        if m.scope in OF_LOSS:
            return "the data holds no labels for this model's output"
        if m.scope == "expansion":
            return "it needs the whole model at once, not block by block"
        if m.scope == "curvature":
            return "it needs the whole model in one process, not block by block and not in jobs"
        if m.scope in SCOPES_INSIDE:
            what = {"attention": "attends to its own stream", "hidden": "has a last matrix of a feed-forward part"}
            return f"no block of this model {what[m.scope]} in a way that can be watched"
        if m.scope == "weight":
            return "the blocks hold no weight matrix"
        return "no block of this model supplies " + ", ".join(m.needs)

    def _mark_nonfinite(self, m: Measure, frame: pd.DataFrame) -> None:
        touched = frame[frame["nonfinite"] > 0]
        if len(touched):
            column = next((c for c in ("block", "point", "source") if c in frame), None)
            where = f" ({column} {', '.join(map(str, sorted(set(touched[column]))[:8]))})" if column else ""
            self.out.notes.append(f"{m.name}: {len(touched)} rows met NaN or infinite numbers{where}")
