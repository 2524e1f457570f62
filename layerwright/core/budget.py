"""What a walk through a model will take, before it starts: bytes to read, disk, memory and time."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layerwright.core import backward
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.errors import UserError
from layerwright.core.memory import available_memory
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.wiring import Wiring

# What measuring takes beside weights and states: workspace of kernels, numbers on their way to the tables.
_ROOM = 128 * 2**20
# Bytes of the names in a packet of tensors.
_NAMES = 4096
# Bytes a second that a disk is taken to give: nothing is known of it.
_DISK = 2**30


@dataclass(frozen=True)
class Budget:
    """Bytes and seconds.

    Attributes:
        read: of weights, from disk.
        weights: all weights in memory, had they to be there at once.
        memory: the most that the walk needs at a time, beside what the process has already.
        disk: states and streams.
        seconds: a rough estimate, from the speed of one matrix product.

    Example:
        >>> budget = Budget(read=3 * 2**30, weights=6 * 2**30, memory=500 * 2**20, disk=2**20, seconds=200.0)
        >>> budget.describe().split(", ")[-1]
        'takes about 3 min'
    """

    read: int
    weights: int
    memory: int
    disk: int
    seconds: float

    @classmethod
    def of(cls, skeleton: Skeleton, wiring: Wiring, desk: Desk, batch: Batch, sequences: int) -> Budget:
        """What a walk will take.

        Args:
            skeleton: the model.
            wiring: its tower, and when its other weights are read.
            desk: the measures.
            batch: one that has met the stream.
            sequences: number of sequences in all batches.
        """
        order = wiring.stack.order
        up = [b for k, b in enumerate(order) if k == 0 or b != order[k - 1]]
        twice = desk.wants(*backward.SCOPES)
        kinds = 2 if wiring.stack.causal else 1
        streams = kinds * len(order) if desk.wants("skip", "skip_output") else 0
        below = {b: skeleton.below(wiring.stack.tower.block_paths[b]) for b in up}
        loads = [below[b] for b in up + (up[-2::-1] if twice else [])]
        state = batch.native.numel() * wiring.itemsize
        batches = sequences / batch.size
        states = len(order) + 1
        # Streams lie there twice while a block carries them on, and once while gradients go down.
        most = max(states + 2 * streams, 2 * states + streams if desk.wants(*backward.OF_LOSS) else 0)
        # Token factors of one block's matrices, and of those of the block above.
        sides = [
            sum(sum(skeleton.recipes[n].shape) for n in names if skeleton.recipes[n].ndim == 2)
            for names in below.values()
        ]
        factors = 2 * (_NAMES + 4 * batch.mask.numel() * max(sides)) if desk.wants("matrix_pair") else 0
        read = sum(map(skeleton.stored, [*loads, wiring.before, wiring.after, wiring.both]))
        # A token meets a block once on the way up, once more for each stream, and three times on the way down.
        passes = 1 + streams / 2 + (3 if twice else 0)
        flops = 2 * batches * batch.mask.numel() * passes * sum(map(skeleton.numel, loads[: len(up)]))
        if desk.wants("weight"):
            flops += sum(_singular_values(skeleton.recipes[name]) for names in below.values() for name in names)
        return cls(
            read=read,
            weights=skeleton.nbytes(skeleton.recipes),
            memory=_ROOM + 10 * state + _held(skeleton, wiring, max(map(skeleton.nbytes, loads)), batch),
            disk=int(batches * (state * most + factors)),
            seconds=flops / _speed(wiring.stack, skeleton.device) + read / _DISK,
        )

    def describe(self) -> str:
        """One line."""
        return (
            f"reads {readable(self.read)} of weights ({readable(self.weights)} in memory, were they loaded whole), "
            f"needs {readable(self.memory)} of memory and {readable(self.disk)} of disk, takes about "
            f"{_time(self.seconds)}"
        )

    def check(self, folder: Path) -> None:
        """Refuse what cannot be finished.

        Raises:
            UserError: memory or disk is too small.
        """
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(folder).free + held  # what an interrupted run has written need not be written again
        if self.disk > free:
            raise UserError(
                f"the walk needs {readable(self.disk)} of disk and {folder} has {readable(free)} free; choose another "
                "--out, or fewer --max-tokens"
            )
        memory = available_memory()
        if self.memory > memory:
            raise UserError(
                f"the walk needs {readable(self.memory)} of memory and {readable(memory)} is free; choose a smaller "
                "--dtype, a shorter --length, or a machine with more"
            )


def _held(skeleton: Skeleton, wiring: Wiring, block: int, batch: Batch) -> int:
    """The most weights in memory at a time: two blocks, or one and what comes after the tower with its logits."""
    before, after, both = map(skeleton.nbytes, (wiring.before, wiring.after, wiring.both))
    classes = max(len(weight) for weight in skeleton.recipes.values() if weight.ndim)  # no vocabulary is larger
    logits = 3 * 4 * batch.mask.shape[1] * classes
    return both + max(before, 2 * block, block + after + logits)


def _singular_values(weight: Tensor) -> int:
    """Operations for the singular values of a matrix, or of each of a stack of them."""
    return 8 * weight.numel() * min(weight.shape[-2:]) if weight.ndim > 1 else 0


def _speed(stack: Stack, device: torch.device) -> float:
    """Floating-point operations a second in the model's dtype, from one matrix product."""
    dtype = next((p.dtype for p in stack.model.parameters() if p.is_floating_point()), torch.float32)
    a = torch.ones(768, 768, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * len(a) ** 3 / best


def readable(n: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
