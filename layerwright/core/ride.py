"""One batch on its way through a tower whose blocks come and go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from layerwright.core.batch import Batch
from layerwright.core.forward import BlockPass
from layerwright.core.layout import Layout
from layerwright.core.replay import Replay
from layerwright.core.states import StateFile, States, StreamKey


class Ride:
    """One batch on its way through the tower, and where its states lie."""

    replay: Replay

    def __init__(self, batch: Batch, blocks: BlockPass, place: Path, depth: int) -> None:
        """A batch, what measures it in its blocks, and what the names of its files begin with."""
        self.batch, self.blocks, self._place, self._depth = batch, blocks, place, depth

    def board(self, replay: Replay, layout: Layout) -> Tensor:
        """Take what the blocks are called with; the bottom state is handed on, not kept."""
        state = replay.states[0]
        self.batch.settle(layout.tokens(state), state)
        self.batch.native = state.new_zeros(()).expand(state.shape)
        replay.states = self.states  # type: ignore[assignment]
        self.replay = replay
        return state

    @property
    def states(self) -> States:
        """The stream before and after every block."""
        return States(self._place.with_name(f"{self._place.name}-state"), self._depth, self.batch.native)

    def streams(self, k: int) -> StateFile:
        """The skip streams before block application `k`."""
        return StateFile(self._place.with_name(f"{self._place.name}-skips-{k:04d}"), self.batch.native)

    def gradient(self, k: int) -> StateFile:
        """The derivative of the loss by state `k`."""
        return StateFile(self._place.with_name(f"{self._place.name}-gradient-{k:04d}"), self.batch.native)


def stream_keys(k: int, kinds: Sequence[str]) -> list[StreamKey]:
    """The skip streams before block application `k`, in the order in which they lie on disk."""
    return [(source, kind) for source in range(k) for kind in kinds]
