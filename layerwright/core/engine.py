"""From what a user names to a recording: the loaded model in one pass over the data, or block by block."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from layerwright.core.budget import Budget, readable
from layerwright.core.data import Data, load_data
from layerwright.core.errors import UserError
from layerwright.core.load import DTYPES, load_model, locate, read_json
from layerwright.core.memory import available_memory, returning_memory
from layerwright.core.ranks import Ranks
from layerwright.core.record import record
from layerwright.core.recording import Recording
from layerwright.core.registry import Measure
from layerwright.core.runfolder import RunFolder
from layerwright.core.shards import Checkpoint
from layerwright.core.shares import Task, run_tasks
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.stream import Progress, Walk
from layerwright.core.wiring import Wiring

CHOICES = ("auto", "always", "never")
WALK, JOBS, AGAINST = "walk", "jobs", "against"
# A checkpoint from this size on is worth fresh pages of memory for every tensor.
_LARGE = 2**28


@dataclass(frozen=True)
class Request:
    """What is asked of a survey; the fields are the arguments of `verbs.survey`."""

    model: str | Path | nn.Module
    data: Any
    measures: list[Measure]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    blocks: str | None = None
    tokenizer: Any = None
    device: str = "cpu"
    dtype: str | None = None
    max_tokens: int | None = None
    length: int | None = None
    seed: int = 0
    trust_remote_code: bool = False
    stream: str = "auto"
    jobs: str | None = None
    out: Path | None = None
    progress: Progress = lambda stage, done, total: None
    say: Callable[[str], None] = lambda line: None

    def of(self, model: str | Path | nn.Module | None, data: Any = None) -> Request:
        """The same of another model, with a folder and a tokenizer of its own, or on other data, or both."""
        out = None if self.out is None else self.out / AGAINST
        model, data = self.model if model is None else model, self.data if data is None else data
        same = model is self.model or isinstance(model, nn.Module)
        return replace(self, model=model, data=data, out=out, tokenizer=self.tokenizer if same else None)

    @cached_property
    def ranks(self) -> Ranks:
        """The processes that hold a live model between them."""
        return Ranks.of(self.model)

    @property
    def loading(self) -> dict[str, Any]:
        """How to load the model."""
        return {"dtype": self.dtype, "device": self.device, "trust_remote_code": self.trust_remote_code}

    def read(self, model: nn.Module, tokenizer: Any) -> Data:
        """The data, for a model."""
        tokenizer = self.tokenizer or tokenizer
        limits = {"length": self.length, "max_tokens": self.max_tokens}
        return self.ranks.same(lambda: load_data(self.data, model, tokenizer, **limits), self._told)

    def _told(self, data: Data) -> str:
        """Everything that ranks must have in common to survey a model together."""
        sizes = [[list(x.shape) for x in batch.values()] for batch in data.batches]
        measures = [(m.name, sorted(self.options.get(m.name, {}).items())) for m in self.measures]
        return f"{data.digest} {data.prefix} {sizes} {measures} {self.blocks} {self.seed}"


class Answer(NamedTuple):
    """The tower, the data, what is known of the model, and the recording."""

    stack: Stack
    data: Data
    about: dict[str, Any]
    recording: Recording


def answers(requests: Mapping[str, Request]) -> dict[str, Answer]:
    """Survey each model with the engine that is asked for, or that fits; jobs of several models are one set.

    Raises:
        UserError: something given cannot be used.
    """
    one = next(iter(requests.values()))
    if one.stream not in CHOICES:
        raise UserError(f"got stream {one.stream!r}; expected one of {', '.join(CHOICES)}")
    if one.jobs is None:
        return {name: _answer(request) for name, request in requests.items()}
    if one.stream == "always":
        raise UserError("got --stream always and --jobs; a walk takes blocks in order: leave one of them out")
    if any(request.ranks.size > 1 for request in requests.values()):
        raise UserError("got jobs for a model that is spread over ranks, which share the data; leave the jobs out")
    return by_jobs(requests)


def _answer(request: Request) -> Answer:
    if isinstance(request.model, nn.Module):
        if request.stream == "always":
            raise UserError("got a live model to stream; only a model in a folder can be taken block by block")
        return in_memory(request)
    if request.stream == "always" or (request.stream == "auto" and _too_large(request)):
        return by_walk(request)
    return in_memory(request)


def in_memory(request: Request) -> Answer:
    """Load the whole model and let it run."""
    stack, data, about = _load(request)
    recording = record(
        stack, data.batches, request.measures, options=request.options, sequences=data.sequences, prefix=data.prefix,
        seed=request.seed, progress=request.progress, ranks=request.ranks,
    )  # fmt: skip
    return Answer(stack, data, about, recording)


def _load(request: Request) -> tuple[Stack, Data, dict[str, Any]]:
    request.progress("loading", 0, 1)
    model, tokenizer, about = load_model(request.model, **request.loading)
    data = request.read(model, tokenizer)
    request.progress("loading", 1, 1)
    return Stack.find(model, data.batches[0], request.blocks), data, about


def by_jobs(requests: Mapping[str, Request]) -> dict[str, Answer]:
    """Survey models by independent jobs of a few sequences; the jobs of all models are one set."""
    one = next(iter(requests.values()))
    tasks: dict[str, Task] = {}
    loaded: dict[str, tuple[Stack, Data, dict[str, Any]]] = {}
    settings: dict[str, Any] = {}
    for name, request in requests.items():
        stack, data, about = loaded[name] = _load(request)
        live = isinstance(request.model, nn.Module)
        tasks[name] = Task.of(
            stack.model if live else about["folder"], data, request.measures, options=request.options,
            loading=request.loading, blocks=request.blocks, seed=request.seed,
        )  # fmt: skip
        tasks[name].lend(stack.model)
        settings[name] = None if live else _settings(request, Checkpoint.open(Path(about["folder"])), data, threads=1)
    store = one.out / JOBS if one.out is not None and all(settings.values()) else None
    stacks = {name: stack for name, (stack, _, _) in loaded.items()}
    recordings = run_tasks(
        tasks, stacks, engine=str(one.jobs), store=store, settings=settings,
        progress=lambda done, total: one.progress("jobs", done, total),
    )  # fmt: skip
    return {name: Answer(*loaded[name], recordings[name]) for name in requests}


def by_walk(request: Request) -> Answer:
    """Take the model block by block; with `out`, a run that was stopped goes on from its last record."""
    assert not isinstance(request.model, nn.Module)
    skeleton, tokenizer, about = Skeleton.load(request.model, **request.loading)
    data = request.read(skeleton.model, tokenizer)
    with ExitStack() as closing:
        if skeleton.stored(skeleton.recipes) >= _LARGE:
            closing.enter_context(returning_memory())
        out = request.out or Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="layerwright-")))
        run = closing.enter_context(
            RunFolder.opened(out / WALK, _settings(request, skeleton.checkpoint, data, torch.get_num_threads()))
        )
        wiring = Wiring.find(skeleton, data.batches[0], request.blocks)
        walk = Walk(
            skeleton, wiring, data.batches, request.measures, run, options=request.options, sequences=data.sequences,
            prefix=data.prefix, seed=request.seed, progress=request.progress,
        )  # fmt: skip

        def announce(budget: Budget) -> None:
            request.say(f"block by block: {budget.describe()}")
            budget.check(run.folder)

        recording = walk.run(announce)
    about["notes"] = [*about["notes"], "measured block by block (--stream): one block's weights in memory at a time"]
    return Answer(walk.stack, data, about, recording)


def _settings(request: Request, checkpoint: Checkpoint, data: Data, threads: int) -> dict[str, Any]:
    """Everything that the numbers depend on, for a run that goes on later."""
    from layerwright import __version__

    return {
        "seed": request.seed,
        "model": checkpoint.identity(),
        "data": data.digest,
        "batches": [len(next(iter(batch.values()))) for batch in data.batches],
        "prefix": data.prefix,
        "measures": [m.name for m in request.measures],
        "options": {name: dict(options) for name, options in request.options.items()},
        "blocks": request.blocks,
        "dtype": request.dtype,
        "device": request.device,
        "threads": threads,
        "layerwright": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _too_large(request: Request) -> bool:
    """Whether the weights would not fit where they are to be; says so."""
    folder, _ = locate(str(request.model), request.trust_remote_code)
    dtype = request.dtype or read_json(folder / "config.json").get("dtype")
    size = DTYPES[dtype].itemsize if dtype in DTYPES else None
    entries = Checkpoint.open(folder).entries.values()
    needed = sum(e.nbytes if size is None else e.nbytes // e.dtype.itemsize * size for e in entries)
    if request.device.startswith("cuda"):
        free = torch.cuda.mem_get_info(torch.device(request.device))[0]
    else:
        free = available_memory()
    # States, gradients and a batch's activations want their share beside the weights.
    if needed <= 0.75 * free:
        return False
    request.say(f"the weights take {readable(needed)} and {readable(free)} is free: surveying block by block")
    return True


def tidy(out: Path) -> None:
    """Take away what a finished run kept beside its result, to go on from."""
    for place in (out / WALK, out / JOBS, out / AGAINST / WALK):
        shutil.rmtree(place, ignore_errors=True)
