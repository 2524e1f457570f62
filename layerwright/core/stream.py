"""The recorder's other engine: the same passes block by block, with one block's weights in memory.

The wiring of the model is known from a run with random weights (`core/wiring.py`). The real blocks are read one after
another, each once on the way up and once more on the way down, and every batch goes through a block while it is there,
all skip streams with it. States lie on disk between blocks. What a block gave is a record; a run that was stopped goes
on after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerwright.core import backward, collection, inside
from layerwright.core.backward import BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.budget import Budget
from layerwright.core.calls import beside
from layerwright.core.desk import Desk
from layerwright.core.forward import BlockPass, give_tower, last_tokens
from layerwright.core.hidden import HiddenFinder
from layerwright.core.inputs import Inputs, moved, small
from layerwright.core.lens import lens_of_states
from layerwright.core.packet import Packet
from layerwright.core.quiet import undisturbed
from layerwright.core.recording import Recording
from layerwright.core.registry import Measure
from layerwright.core.replay import Replay
from layerwright.core.ride import Ride, stream_keys
from layerwright.core.runfolder import RunFolder
from layerwright.core.skeleton import Skeleton
from layerwright.core.skips import SkipPass
from layerwright.core.stack import PartFinder
from layerwright.core.states import StateFile, StreamFiles
from layerwright.core.sublayers import Sublayer
from layerwright.core.weights import give_weights, nonfinite_weights
from layerwright.core.wiring import Wiring

Progress = Callable[[str, int, int], None]


class Walk:
    """A survey of a skeleton: `run` gives what `core.record.record` gives of the loaded model.

    Attributes:
        stack: the tower, with the sublayers of the real blocks once they were there.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        wiring: Wiring,
        batches: Sequence[Inputs],
        measures: list[Measure],
        folder: RunFolder,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        sequences: int,
        prefix: int = 0,
        seed: int = 0,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        """Prepare: the arguments are those of `core.record.record`, and the folder for states and records."""
        self.skeleton, self.wiring, self.folder, self.progress, self.seed = skeleton, wiring, folder, progress, seed
        self.stack = wiring.stack
        self._desk, self._total = Desk(measures, options or {}), Desk(measures, options or {})
        self._out = Recording()
        self._parts: list[tuple[Sublayer, ...]] = list(wiring.stack.parts)
        self._finder = PartFinder(wiring.stack)
        self._hidden = HiddenFinder(wiring.stack, self._parts)
        self._loaded: int | None = None
        self._rides = self._board(batches, sequences, prefix)
        self._piece = Replay(wiring.stack, moved(small(batches[0]), skeleton.device), run=False)

    def _board(self, batches: Sequence[Inputs], sequences: int, prefix: int) -> list[Ride]:
        rides: list[Ride] = []
        for inputs in batches:
            first = sum(ride.batch.size for ride in rides)
            inputs = moved(inputs, self.skeleton.device)
            batch = Batch.of(self.stack, inputs, first, prefix, sequences, self.seed)
            blocks = BlockPass(self.stack, self._desk, batch, self._parts, check_sum=not rides)
            rides.append(Ride(batch, blocks, self.folder.states() / f"{len(rides):04d}", self.stack.depth))
        return rides

    def run(self, announce: Callable[[Budget], None] = lambda budget: None) -> Recording:
        """Up the tower, over its top, and down again.

        Args:
            announce: called with what the walk will take before it starts; what it raises stops the walk.
        """
        depth = self.stack.depth
        with undisturbed(self.stack.model), torch.no_grad(), ExitStack() as closing:
            closing.callback(self.skeleton.stop)
            self._capture(announce)
            self._step("bottom", self._bottom)
            for k in range(depth):
                self._step(f"up-{k:04d}", partial(self._up, k))
                self._hand_on(k)
                self._tidy(k)
            self._step("top", self._top)
            if self._desk.wants(*backward.SCOPES):
                for k in reversed(range(depth)):
                    self._step(f"down-{k:04d}", partial(self._down, k))
        self.stack = replace(self.stack, parts=tuple(self._parts))
        self._out.finish(self.stack, self._total, self.seed)
        return self._out

    # Steps and their records

    def _step(self, name: str, work: Callable[[], list[StateFile]]) -> None:
        """Do a step and record it, or read what it gave when it was done before."""
        packet = self.folder.record(name)
        if packet is None:
            for file in work():
                file.flush()
            packet = self._packet()
            self.folder.commit(name, packet)
        self._total.put(packet)
        self._restore(packet)

    def _packet(self) -> Packet:
        numbers, about = self._desk.take(), self._out.to_packet()
        parts = [[asdict(part) for part in parts] for parts in self._parts]
        carried = {"carry/piece": self._piece.states[-1]}
        if self._rides[0].blocks.added is not None:
            carried["carry/added"] = self._rides[0].blocks.added
        return Packet({**numbers.data, **about.data, "parts": parts}, {**numbers.tensors, **about.tensors, **carried})

    def _restore(self, packet: Packet) -> None:
        self._parts[:] = [tuple(Sublayer(**part) for part in parts) for parts in packet.data["parts"]]
        self._out = Recording()
        self._out.add(packet)
        self._piece.states[1:] = [packet.tensors["carry/piece"].to(self.skeleton.device)]
        self._rides[0].blocks.added = packet.tensors.get("carry/added")

    def _keep_beside(self, k: int) -> None:
        """Record what a block hands on to later ones beside the stream, where it does."""
        if k in self._piece.handed_on:
            replays = [self._piece, *(ride.replay for ride in self._rides)]
            given = {f"{who}/{n}": x for who, r in enumerate(replays) for n, x in enumerate(beside(r.structures[k]))}
            self.folder.commit(f"beside-{k:04d}", Packet({}, given))

    def _hand_on(self, k: int) -> None:
        """Let every batch have it, also where the block ran before this run was stopped."""
        packet = self.folder.record(f"beside-{k:04d}") if k in self._piece.handed_on else None
        if packet is not None:
            for who, replay in enumerate([self._piece, *(ride.replay for ride in self._rides)]):
                names = sorted(
                    (n for n in packet.tensors if n.startswith(f"{who}/")), key=lambda n: int(n.split("/")[1])
                )
                replay.hand_on(k, (packet.tensors[name].to(self.skeleton.device) for name in names))

    # The walk

    def _capture(self, announce: Callable[[Budget], None]) -> None:
        """What every block is called with on every batch: the part of the model before the tower runs, no block."""
        self.skeleton.fill([*self.wiring.both, *self.wiring.before])
        self._piece = Replay.captured(self.stack, self._piece.inputs, self.wiring.structures)
        fresh = self.folder.record("bottom") is None
        for ride in self._rides:
            replay = Replay.captured(self.stack, ride.batch.inputs, self.wiring.structures)
            state = ride.board(replay, self.stack.layout)
            if ride is self._rides[0]:
                sequences = sum(r.batch.size for r in self._rides)
                announce(Budget.of(self.skeleton, self.wiring, self._desk, ride.batch, sequences))
            if fresh:
                ride.states.file(0).restart().append(state)
        self._out.note_error("walk", self.wiring.error)
        self._out.sequences = sum(ride.batch.size for ride in self._rides)
        self._out.tokens = sum(int(ride.batch.mask.sum()) for ride in self._rides)
        self.skeleton.zero(self.wiring.before)

    def _bottom(self) -> list[StateFile]:
        self._piece.states.append(self._piece.states[0])
        for ride in self._rides:
            ride.blocks.bottom(ride.states[0])
            ride.blocks.close()
        return [ride.states.file(0) for ride in self._rides]

    def _up(self, k: int) -> list[StateFile]:
        b = self.stack.order[k]
        following = next((i for i in self.stack.order[k + 1 :] if i != b), None)
        self._load(b, self.wiring.after if following is None else self._weights(following))
        if self.stack.order.index(b) == k:
            self._out.notes += nonfinite_weights(self.stack, b)
            if self._desk.wants("weight"):
                give_weights(self.stack, self._desk, b)
        self._parts[k] = self._finder.of(k, self._piece, self._piece.states[-1])
        self._piece.states[1:] = [self._piece.first(k, self._piece.states[-1])]
        written = []
        for place, ride in enumerate(self._rides):
            written += self._through(k, ride)
            self.progress("up", k * len(self._rides) + place + 1, self.stack.depth * len(self._rides))
        self._keep_beside(k)
        return written

    def _through(self, k: int, ride: Ride) -> list[StateFile]:
        """One batch through a block, and every stream of it that skips an earlier one."""
        state = ride.states[k]
        with ride.blocks.watching([k]):
            ride.blocks.begin(k, state)
            after = ride.replay.first(k, state)
            ride.blocks.end(k, after)
        ride.blocks.close()
        if self._desk.wants(*inside.SCOPES):
            within = inside.InsidePass(self.stack, self._desk, ride.batch, ride.replay, self._hidden)
            within.step(k)
            within.close()
        written = [ride.states.file(k + 1).restart()]
        written[0].append(after)
        if self._desk.wants("skip", "skip_output"):
            skips = self._skips(ride)
            target = ride.streams(k + 1).restart()
            skips.step(k, StreamFiles(ride.streams(k), target, stream_keys(k, skips.kinds)))
            skips.close()
            written.append(target)
        return written

    def _tidy(self, k: int) -> None:
        """The streams below a block are not needed once those above it are recorded."""
        for ride in self._rides:
            ride.streams(k).restart()

    def _top(self) -> list[StateFile]:
        self.skeleton.fill(self.wiring.after)
        written = []
        for place, ride in enumerate(self._rides):
            written += self._answers(ride)
            self.progress("output", place + 1, len(self._rides))
        self.skeleton.clear(self.wiring.after)
        return written

    def _answers(self, ride: Ride) -> list[StateFile]:
        """Everything that is read off the whole stream or the model's output."""
        states, tokens = ride.states, self.stack.layout.tokens
        self._out.note_error("sum", ride.blocks.sum_error(tokens(states[-1])))
        if self._desk.wants("tower"):
            give_tower(self._desk, [last_tokens(tokens(state), ride.batch) for state in states])
        if self._desk.wants("lens") and self.stack.head is not None:
            given = (ride.batch, ride.replay, self.wiring.structures, states)
            self._out.note_error("lens", lens_of_states(self.stack, self._desk, *given))
        collection.collect(self._desk, self.stack, ride.batch, ride.replay, states)
        if self._desk.wants("skip", "skip_output"):
            skips = self._skips(ride)
            skips.answer(StreamFiles(ride.streams(self.stack.depth), None, stream_keys(self.stack.depth, skips.kinds)))
        downs = self._downs(ride)
        gradient = downs.top() if self._desk.wants(*backward.OF_LOSS) else None
        if gradient is None:
            return []
        ride.keep(self.stack.depth, downs)
        return [self._gradient(ride, self.stack.depth, gradient)]

    def _down(self, k: int) -> list[StateFile]:
        order = self.stack.order
        following = next((i for i in reversed(order[:k]) if i != order[k]), None)
        self._load(order[k], [] if following is None else self._weights(following))
        written = []
        waiting: backward.Waiting = {}
        for place, ride in enumerate(self._rides):
            labelled = self._desk.wants(*backward.OF_LOSS) and ride.batch.labels(self.stack) is not None
            above = ride.gradient(k + 1).read() if labelled else None
            downs = self._downs(ride, waiting)
            if labelled:
                ride.take_up(k + 1, downs)
            gradient = downs.step(k, above)
            downs.close()
            if gradient is not None:
                ride.keep(k, downs)
                written.append(self._gradient(ride, k, gradient))
            done = (self.stack.depth - 1 - k) * len(self._rides) + place + 1
            self.progress("down", done, self.stack.depth * len(self._rides))
        return written

    def _skips(self, ride: Ride) -> SkipPass:
        return SkipPass(self.stack, self._desk, ride.batch, ride.replay, self.seed)

    def _downs(self, ride: Ride, waiting: backward.Waiting | None = None) -> BackwardPass:
        return BackwardPass(self.stack, self._desk, ride.batch, ride.replay, self.seed, waiting)

    def _gradient(self, ride: Ride, k: int, gradient: Tensor) -> StateFile:
        file = ride.gradient(k).restart()
        file.append(gradient)
        return file

    def _load(self, b: int, then: list[str]) -> None:
        """The weights of a distinct block in memory, in place of the last one's, and others on their way."""
        if self._loaded != b:
            if self._loaded is not None:
                self.skeleton.clear(self._weights(self._loaded))
            self.skeleton.fill(self._weights(b))
            self._loaded = b
        self.skeleton.prefetch(then)

    def _weights(self, b: int) -> list[str]:
        return self.skeleton.below(self.stack.tower.block_paths[b])
