"""A survey as independent jobs: a few sequences each, wherever jobs run (`core/jobs.py`)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import nn

from layerwright.core.data import Data
from layerwright.core.inputs import Inputs, batch_size, in_pairs, on_device, rows
from layerwright.core.jobs import run_jobs
from layerwright.core.load import load_model
from layerwright.core.packet import Packet
from layerwright.core.record import join_parts, record_part
from layerwright.core.recording import Recording
from layerwright.core.registry import Measure
from layerwright.core.stack import Stack

# Sequences are dealt into about so many shares, whatever is there to work on them: results do not depend on that.
SHARES = 16

# The model that this process works on, by task: a worker gets many shares of the same one.
_MODELS: dict[str, nn.Module] = {}


@dataclass(frozen=True)
class Task:
    """One model to survey over some data, as workers get it.

    A model from a folder is loaded by each worker; a live one travels to it.
    """

    model: str | nn.Module
    piece: Inputs
    shares: list[list[Inputs]]
    firsts: list[int]
    measures: list[Measure]
    options: Mapping[str, Mapping[str, Any]]
    loading: Mapping[str, Any]
    blocks: str | None
    sequences: int
    prefix: int
    seed: int
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(
        cls,
        model: str | nn.Module,
        data: Data,
        measures: list[Measure],
        *,
        options: Mapping[str, Mapping[str, Any]],
        loading: Mapping[str, Any],
        blocks: str | None = None,
        seed: int = 0,
    ) -> Task:
        """Deal the data into shares.

        Args:
            model: a live model, or the folder of one.
            data: what to survey it on.
            measures: what to measure.
            options: keyword options by measure.
            loading: how to load it (`load_model`).
            blocks: path of the tower.
            seed: of the survey.
        """
        size = 2 * -(-data.sequences // (2 * SHARES))
        shares = in_pairs(
            rows(batch, slice(start, start + size))
            for batch in data.batches
            for start in range(0, batch_size(batch), size)
        )
        firsts = list(accumulate((sum(map(batch_size, share)) for share in shares), initial=0))
        return cls(
            model, data.batches[0], shares, firsts, measures, options, loading, blocks, data.sequences, data.prefix,
            seed,
        )  # fmt: skip

    def lend(self, model: nn.Module) -> None:
        """Let jobs in this process use a model that is loaded already."""
        _MODELS[self.identity] = model

    def measure(self, share: int) -> Packet:
        """Survey one share."""
        if self.identity not in _MODELS:
            _MODELS.clear()  # the shares of one model come together
            self.lend(self.model if isinstance(self.model, nn.Module) else load_model(self.model, **self.loading)[0])
        model = _MODELS[self.identity]
        stack = Stack.find(model, on_device(self.piece, model), self.blocks)
        return record_part(
            stack, self.shares[share], self.firsts[share], self.measures, options=self.options,
            sequences=self.sequences, prefix=self.prefix, seed=self.seed, weights=share == 0,
        )  # fmt: skip


def measure_share(key: str, seed: int, tasks: Mapping[str, Task]) -> Packet:
    """The job: `name/3` is the fourth share of a task. Its draws go by sequence, so that the job's own seed is idle."""
    name, share = key.rsplit("/", 1)
    return tasks[name].measure(int(share))


def run_tasks(
    tasks: Mapping[str, Task],
    stacks: Mapping[str, Stack],
    *,
    engine: str,
    store: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Recording]:
    """Survey every task, all shares of all of them as one set of jobs.

    Args:
        tasks: by name.
        stacks: their towers, by the same names.
        engine: where the jobs run.
        store: folder for finished jobs, from which a run that was stopped goes on.
        settings: what the results depend on.
        progress: called with the jobs done and the jobs to do.
    """
    keys = [f"{name}/{share}" for name, task in tasks.items() for share in range(len(task.shares))]
    try:
        packets = run_jobs(
            measure_share, keys, dict(tasks), engine=engine, store=store, settings=settings, progress=progress
        )
    finally:
        _MODELS.clear()
    return {name: _join(task, stacks[name], _of(name, packets)) for name, task in tasks.items()}


def _of(name: str, packets: Mapping[str, Packet]) -> list[Packet]:
    return [packet for key, packet in packets.items() if key.rsplit("/", 1)[0] == name]


def _join(task: Task, stack: Stack, parts: Sequence[Packet]) -> Recording:
    return join_parts(stack, parts, task.measures, options=task.options, seed=task.seed)
