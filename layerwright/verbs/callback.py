"""`Callback`: `watch` for the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerwright.core.ranks import Ranks
from layerwright.verbs.watcher import Settings, Watch
from layerwright.verbs.watching import CHOSEN


class Callback(TrainerCallback):
    """Log measures of the model that a Trainer trains: before the first step, every few steps, and at the end.

    Only the main process measures, unless the weights are spread over processes, which then measure together. `loss` is
    the last that the Trainer logged, at `loss_step`.

    Args:
        data: as `watch` takes it; what is held out from training says more.
        out: folder for `measures.jsonl` and the files of TensorBoard.
        every: steps between two lines.
        measures: names of measures, or `loss_sharpness`.
        tensorboard: write scalars for TensorBoard as well.
        others: further arguments of `watch`.

    Raises:
        UserError: a measure is unknown, or the folder cannot be written.
    """

    def __init__(
        self,
        data: Any = None,
        *,
        out: str | Path,
        every: int = 100,
        measures: Sequence[str] = CHOSEN,
        tensorboard: bool = False,
        **others: Any,
    ) -> None:
        """Check everything that can be checked without the model."""
        self._data = data
        self._watch: Watch | None = None
        self.settings = Settings(Path(out), every, measures, tensorboard=tensorboard, **others)
        self.settings.check()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Read the data, and measure where the training starts."""
        if not state.is_world_process_zero and Ranks.of(model).size == 1:
            return
        settings = self.settings
        if settings.tokenizer is None:
            settings = replace(settings, tokenizer=processing_class)
        self._watch = Watch(model, self._data, settings)
        self._watch(state.global_step, **_loss(state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure at multiples of `every`."""
        if self._watch is not None:
            self._watch(state.global_step, **_loss(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the end, where that was no multiple."""
        if self._watch is not None and self._watch.last != state.global_step:
            self._watch.now(state.global_step, **_loss(state))


def _loss(state: TrainerState) -> dict[str, float]:
    """The last that was logged, if any."""
    logged = next((row for row in reversed(state.log_history) if "loss" in row), None)
    return {} if logged is None else {"loss": logged["loss"], "loss_step": logged["step"]}
