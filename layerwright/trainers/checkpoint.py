"""What a run needs to go on: weights, moments, and the curve so far, without pickle.

Tensors go into packets of about 128 MB, so that little more than one of them is in memory twice. The record that names
them is written last: a run that is killed meanwhile goes on from the checkpoint before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.packet import Packet
from layerwright.core.runfolder import RunFolder
from layerwright.trainers.precision import numbers

_RECORD = "checkpoint"
_SHARD = 2**27


@dataclass
class State:
    """How far a run has come, beside its weights and moments.

    Attributes:
        step: updates made.
        rows: the curve, `[row, column]`.
        before: held-out sums at the start, `[2, document]`.
        after: held-out sums at this step.
    """

    step: int
    rows: list[list[float]]
    before: np.ndarray
    after: np.ndarray

    @property
    def seconds(self) -> float:
        """What the run took so far."""
        return self.rows[-1][-1]


class Checkpoints:
    """The last checkpoint of a run, in its folder."""

    def __init__(self, run: RunFolder) -> None:
        """In a folder that is opened already."""
        self._run = run
        self.step: int | None = None  # of the last checkpoint

    @property
    def kept(self) -> str:
        """What there is to go on from, in words."""
        return "" if self.step is None else f"; the state after step {self.step} is kept in {self._run.folder}"

    def exist(self) -> bool:
        """Whether there is anything to go on from."""
        return self._run.record(_RECORD) is not None

    def write(self, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint.

        Raises:
            UserError: the folder cannot be written, or the disk is full; then the one before is left.
        """
        folder, names = self._run.states(), list[str]()
        try:
            for tensors in _shards(model, optimizer):
                names.append(f"{state.step:08d}-{len(names):04d}")
                Packet({}, tensors).write(folder / names[-1])
            data = {"step": state.step, "shards": names}
            curve = torch.tensor(state.rows, dtype=torch.float64)
            sums = {"before": torch.from_numpy(state.before), "after": torch.from_numpy(state.after)}
            self._run.commit(_RECORD, Packet(data, {"curve": curve} | sums))
        except UserError:
            _remove(folder, set(names))
            raise
        self.step = state.step
        _remove(folder, {file.name for file in folder.iterdir()} - set(names))

    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
        """Put weights and moments of the checkpoint into a model and its optimizer.

        Returns:
            None where there is no checkpoint, or what is there is damaged: then the run starts from the beginning.
        """
        record = self._run.record(_RECORD)
        if record is None:
            return None
        files = [self._run.states() / name for name in record.data["shards"]]
        if any(Packet.read(file) is None for file in files):
            return None
        known = dict(numbers(model))
        with torch.no_grad():
            for file in files:
                packet = Packet.read(file)
                assert packet is not None
                for key, saved in packet.tensors.items():
                    kind, _, name = key.partition("/")
                    if kind == "value":
                        known[name].copy_(saved)  # into the memory that is there: its alignment decides last bits
                    else:
                        x = known[name]
                        optimizer.state[x][kind] = saved.clone() if kind == "step" else torch.empty_like(x).copy_(saved)
        self.step = record.data["step"]
        curve, before, after = (record.tensors[name] for name in ("curve", "before", "after"))
        return State(self.step, curve.tolist(), before.numpy(), after.numpy())


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, x in numbers(model):
        yield f"value/{name}", x
        yield from ((f"{kind}/{name}", moment) for kind, moment in optimizer.state.get(x, {}).items())


def _shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, x in _tensors(model, optimizer):
        shard[name] = x
        size += x.nbytes
        if size >= _SHARD:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
