"""What a training run gave: the model, the curve, and the held-out loss before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from layerwright.core.errors import UserError
from layerwright.trainers.held_out import Paired

SCHEMA = 1
# Of the curve, in order: unit, and what it is. The last one is the time.
COLUMNS = {
    "step": ("1", "updates made so far"),
    "tokens": ("token", "tokens whose successor was learned so far"),
    "loss": ("nat/token", "cross-entropy of the batch of this step, before its update"),
    "distillation": ("nat/token", "T² KL(teacher ‖ model) of the same batch; undefined without a teacher"),
    "lr": ("1", "learning rate of this step"),
    "gradient_norm": ("nat/token", "length of the gradient before it was clipped to 1"),
    "validation_loss": ("nat/token", "cross-entropy on held-out text after this step's update, where it was measured"),
    "seconds": ("second", "time since the run began, checkpoints and held-out losses included"),
}


@dataclass
class Training:
    """A finished run.

    Attributes:
        model: the trained model, in the dtype it was stored in, in evaluation mode.
        curve: one row a step, row 0 before the first; `attrs` hold units and definitions.
        held_out: loss on held-out documents before and after, and the change with its 95 % interval.
        settings: what was asked for.
        data: what it was trained on and measured on.
        about: the model's name and class, and the teacher's.
        notes: what a reader should know.
    """

    model: nn.Module
    curve: pd.DataFrame
    held_out: Paired
    settings: dict[str, Any]
    data: dict[str, Any]
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The document that `training.json` holds; undefined numbers are null."""
        from layerwright import __version__

        rows = [[_plain(x) for x in row] for row in self.curve.itertuples(index=False, name=None)]
        return {
            "schema": SCHEMA,
            "layerwright": __version__,
            "model": self.about,
            "settings": self.settings,
            "data": self.data,
            "held_out": {name: _plain(x) for name, x in self.held_out._asdict().items()},
            "notes": self.notes,
            "curve": {"columns": list(self.curve.columns), "rows": rows} | self.curve.attrs,
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any], model: nn.Module) -> Training:
        """The inverse of `to_dict`, with the model that was saved beside it.

        Raises:
            UserError: the document is not one of a training run.
        """
        try:
            numbers = {name: math.nan if x is None else x for name, x in document["held_out"].items()}
            return cls(
                model, curve_of(document["curve"]["rows"]), Paired(**numbers), document["settings"], document["data"],
                document["model"], document["notes"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"training.json is not the record of a training run: {error}") from None


def curve_of(rows: Sequence[Sequence[float | None]]) -> pd.DataFrame:
    """The curve as a frame with units and definitions.

    Example:
        >>> frame = curve_of([[0, 0, None, None, 0.0, None, 5.5, 0.1]])
        >>> frame.validation_loss[0], frame.attrs["unit"]["tokens"]
        (np.float64(5.5), 'token')
    """
    frame = pd.DataFrame([list(row) for row in rows], columns=list(COLUMNS), dtype=float)
    frame = frame.astype({"step": int, "tokens": int})
    frame.attrs = {
        "unit": {name: unit for name, (unit, _) in COLUMNS.items()},
        "definition": {name: words for name, (_, words) in COLUMNS.items()},
    }
    return frame


def _plain(x: float) -> float | None:
    x = x.item() if hasattr(x, "item") else x
    return x if math.isfinite(x) else None
