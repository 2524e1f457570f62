"""One batch on its way through a tower whose blocks come and go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from layerwright.core.backward import OF_MATRICES, BackwardPass
from layerwright.core.batch import Batch
from layerwright.core.errors import UserError
from layerwright.core.forward import BlockPass
from layerwright.core.layout import Layout
from layerwright.core.packet import Packet
from layerwright.core.replay import Replay
from layerwright.core.states import StateFile, States, StreamKey
from layerwright.maths.gradient import MatrixGradient

_SIDES = ("inputs", "deltas")


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

    def keep(self, k: int, downs: BackwardPass) -> None:
        """Put what the step below block application `k` will ask for beside the gradient of its state.

        Two files take turns: that of the step before is needed until this step is recorded.
        """
        if not downs.desk.wants(*OF_MATRICES):
            return
        assert downs.losses is not None
        factors = {f"{name}/{side}": getattr(g, side) for name, g in downs.above.items() for side in _SIDES}
        Packet({"names": list(downs.above)}, {"loss": downs.losses, **factors}).write(self._beside(k))

    def take_up(self, k: int, downs: BackwardPass) -> None:
        """The inverse of `keep`.

        Raises:
            UserError: it is not there, or damaged.
        """
        if not downs.desk.wants(*OF_MATRICES):
            return
        packet = Packet.read(self._beside(k))
        if packet is None:
            raise UserError(f"{self._beside(k)} is missing or damaged; start again in an empty folder")
        given = {name: x.to(self.batch.native.device) for name, x in packet.tensors.items()}
        downs.losses = given["loss"]
        downs.above = {n: MatrixGradient(*(given[f"{n}/{side}"] for side in _SIDES)) for n in packet.data["names"]}

    def _beside(self, k: int) -> Path:
        return self._place.with_name(f"{self._place.name}-matrices-{k % 2}")


def stream_keys(k: int, kinds: Sequence[str]) -> list[StreamKey]:
    """The skip streams before block application `k`, in the order in which they lie on disk."""
    return [(source, kind) for source in range(k) for kind in kinds]
