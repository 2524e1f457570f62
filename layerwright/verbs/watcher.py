"""What `watch` and `Callback` do at a step: measure, and add a line to the log."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from layerwright import measures as _registered  # importing the package registers every measure
from layerwright.core.data import Data, load_data
from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.ranks import Ranks
from layerwright.core.registry import MEASURES, nearest
from layerwright.core.sharpness import INDEX, loss_sharpness
from layerwright.core.stack import Stack
from layerwright.core.table import estimates
from layerwright.core.training_log import TrainingLog, check_folder, scalar_writer
from layerwright.verbs.measuring import survey
from layerwright.verbs.watching import CHOSEN, TOKENS

FILE = "measures.jsonl"
_OURS = ("data", "measures", "notes")

del _registered


class _Beside(NamedTuple):
    """A function of the stack and the data, what names the rows of its table, and its options."""

    function: Callable[..., Any]
    names: tuple[str, ...]
    options: tuple[str, ...]


# What is measured beside the measures of a survey.
_BESIDE = {"loss_sharpness": _Beside(loss_sharpness, INDEX, ("rho",))}


@dataclass(frozen=True)
class Settings:
    """What is logged, how often and where; the fields are arguments of `watch`."""

    out: Path
    every: int = 100
    measures: Sequence[str] = CHOSEN
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    blocks: str | None = None
    tokenizer: Any = None
    max_tokens: int = TOKENS
    length: int | None = None
    seed: int = 0
    tensorboard: bool = False

    def check(self) -> None:
        """Hold everything that needs no model against what can be logged.

        Raises:
            UserError: a field cannot be used.
        """
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"got every {self.every!r}; expected a whole number of steps, at least 1")
        if isinstance(self.measures, str) or not self.measures:
            raise UserError(f"got measures {self.measures!r}; expected a list of names; `lw list measures` shows all")
        for name in (*self.measures, *self.options):
            if name not in MEASURES and name not in _BESIDE:
                known = nearest(name, [*MEASURES, *_BESIDE])
                raise UserError(f"unknown measure {name!r}; did you mean {known!r}? `lw list measures` shows all")
            if name in _BESIDE and (wrong := self.options.get(name, {}).keys() - _BESIDE[name].options):
                raise UserError(f"{name} has no option {min(wrong)!r}; expected {', '.join(_BESIDE[name].options)}")
        check_folder(self.out)
        if self.tensorboard:
            scalar_writer()


class Watch:
    """The function that `watch` returns: `log(step, **numbers)`.

    Attributes:
        settings: what is logged, how often and where.
        data: what is measured on.
        last: the step that was measured last; None before the first.
    """

    def __init__(self, model: nn.Module, data: Any, settings: Settings) -> None:
        """Read the data and open the log.

        Raises:
            UserError: a setting cannot be used, the data does not fit the model, or the log is about other data.
        """
        settings.check()
        if not isinstance(model, nn.Module):
            raise UserError(f"got a {type(model).__name__} to watch; expected the live module that is trained")
        self.settings, self.last = settings, None
        self._model, self._leads = model, Ranks.of(model).leads
        with undisturbed(model):  # a loader that shuffles draws from the random numbers of the training
            self.data = _read(model, data, settings)
        self._stack = self._of_model()
        self._log, self._scalars = None, None
        if self._leads:
            self._log = TrainingLog(settings.out / FILE)
            self._scalars = scalar_writer()(str(settings.out)) if settings.tensorboard else None
            self._check_data(self._log.last)

    def __call__(self, step: int, **numbers: Any) -> dict[str, Any] | None:
        """Measure at multiples of `every`, and add a line.

        Args:
            step: updates of the weights so far.
            numbers: to stand in the line beside the measures, as `loss`; tensors of one number are read only then.

        Returns:
            the line; None where there is none.

        Raises:
            UserError: as `now`.
        """
        return self.now(step, **numbers) if step % self.settings.every == 0 else None

    def now(self, step: int, **numbers: Any) -> dict[str, Any]:
        """The same at any step.

        Raises:
            UserError: the line cannot be written, a number is none, or at the first line a measure says nothing.
        """
        line: dict[str, Any] = {"step": operator.index(step)} | _numbers(numbers) | {"data": self.data.digest[:16]}
        tables, notes = self._measured()
        line["measures"] = {name: _columns(frame) for name, frame in tables.items()}
        line |= {"notes": notes} if notes else {}
        if self._log is not None:
            self._log.write(line)
        if self._scalars is not None:
            for tag, value in scalars(line):
                self._scalars.add_scalar(tag, value, line["step"])
            self._scalars.flush()
        self.last = line["step"]
        return line

    def _of_model(self) -> Stack:
        with _uncast(self._model):
            return Stack.find(self._model, self.data.batches[0], self.settings.blocks)

    def _check_data(self, last: dict[str, Any] | None) -> None:
        if last is not None and last.get("data") != self.data.digest[:16]:
            raise UserError(
                f"{self.settings.out / FILE} holds what was measured on other data; expected the same data, so that "
                "its lines compare; choose another out"
            )

    def _measured(self) -> tuple[dict[str, pd.DataFrame], list[str]]:
        """Tables by measure, and notes; a measure that says nothing stops the first line only."""
        tables: dict[str, pd.DataFrame] = {}
        notes: list[str] = []
        beside = [name for name in self.settings.measures if name in _BESIDE]
        of_survey = [name for name in self.settings.measures if name not in _BESIDE]
        with _uncast(self._model):
            for names, measured in ((of_survey, self._surveyed), (beside, self._beside)):
                try:
                    found, said = measured(names) if names else ({}, [])
                except UserError as error:
                    found, said = {}, [f"{', '.join(names)} could not be measured: {error}"]
                tables |= found
                notes += said
        missing = [name for name in self.settings.measures if name not in tables]
        if missing and self.last is None:
            raise UserError("; ".join(notes) or f"{', '.join(missing)} could not be measured on this model and data")
        return tables, notes

    def _surveyed(self, names: list[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
        options = {name: given for name, given in self.settings.options.items() if name not in _BESIDE}
        found = survey(
            self._model, self.data, only=names, blocks=self.settings.blocks, options=options, seed=self.settings.seed
        )
        tables = {name: found.tables[name] for name in names if name in found.tables}
        return tables, [note for note in found.notes if note.startswith(tuple(names))]

    def _beside(self, names: list[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
        tables = {}
        for name in names:
            options = self.settings.options.get(name, {})
            found = _BESIDE[name].function(self._stack, self.data.batches, prefix=self.data.prefix, **options)
            tables[name] = estimates(_BESIDE[name].names, found, {"name": name})
        return tables, []


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard gets of a line: its numbers, and each value of a measure under the names of its row.

    Example:
        >>> values = {"block": [0, 1], "part": ["mlp", "mlp"], "value": [0.5, None]}
        >>> list(scalars({"step": 3, "loss": 2.0, "measures": {"residual_contribution": values}}))
        [('loss', 2.0), ('residual_contribution/0 mlp', 0.5)]
    """
    yield from ((name, x) for name, x in line.items() if name != "step" and isinstance(x, (int, float)))
    for name, columns in line["measures"].items():
        *index, values = columns.values()
        for n, value in enumerate(values):
            if value is not None:
                yield "/".join([name, " ".join(str(column[n]) for column in index)]).rstrip("/"), value


def _read(model: nn.Module, data: Any, settings: Settings) -> Data:
    tokenizer = load_model(model)[1] if settings.tokenizer is None else settings.tokenizer
    return load_data(data, model, tokenizer, length=settings.length, max_tokens=settings.max_tokens)


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """What names the rows of a table, and the values."""
    columns = {name: frame[name].tolist() for name in (*frame.attrs["index"], "value")}
    return columns | {"value": [_plain(x) for x in columns["value"]]}


def _numbers(given: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, x in given.items():
        if name in _OURS:
            raise UserError(f"got a number named {name!r}, which every line has already; choose another name")
        try:
            found[name] = x if isinstance(x, int) else _plain(float(x.detach() if isinstance(x, torch.Tensor) else x))
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"got {name} {x!r:.60}; expected one number") from None
    return found


def _plain(x: float) -> float | None:
    """JSON has no NaN or infinity: undefined numbers are null."""
    return x if math.isfinite(x) else None


@contextmanager
def _uncast(model: nn.Module) -> Iterator[None]:
    """The model outside of autocast, with its own forward.

    Accelerate, and with it the Trainer, puts autocast around the forward of the model in mixed precision. Blocks that
    are called one by one would miss it, and compute something else than in the pass through the model.
    """
    inner = unwrap(model)
    wrapped: Any = inner.__dict__.get("forward")
    own: Any = inner.__dict__.get("_original_forward")
    device = next((p.device.type for p in inner.parameters()), "cpu")
    with torch.autocast(device, enabled=False):
        if own is not None:
            inner.forward = own
        try:
            yield
        finally:
            if own is not None:
                inner.forward = wrapped
