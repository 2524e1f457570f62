"""Survey: everything one survey found, and its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from layerwright.core.compare import Differences, compare
from layerwright.core.files import write_files
from layerwright.core.plan import Plan
from layerwright.core.recording import Check

SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """A sentence about the model with the numbers behind it, and what to do.

    Attributes:
        rule: name of the rule that spoke.
        title: the finding in one sentence.
        blocks: the blocks it is about, counted from 0.
        evidence: the numbers, one sentence each.
        advice: what follows from it.
        tone: `act` (a change is worth trying), `watch`, `protect` (do not touch) or `good`.
        plan: the natural edit, where there is one.
    """

    rule: str
    title: str
    blocks: list[int]
    evidence: list[str]
    advice: str
    tone: str
    plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the plan as YAML text."""
        return {name: value for name, value in vars(self).items() if name != "plan"} | {
            "plan": None if self.plan is None else self.plan.to_yaml()
        }


@dataclass
class Survey:
    """What a survey found: `survey["residual_contribution"]` is a pandas frame, `survey.findings` say what it means."""

    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    against: Survey | None = None
    differences: Mapping[str, Differences] = field(default_factory=dict)

    @property
    def comparison(self) -> dict[str, pd.DataFrame]:
        """By measure, the numbers of both models or data sets: value, against, difference, its interval, apart."""
        return {} if self.against is None else compare(self.tables, self.against.tables, self.differences)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The table of one measure."""
        if name not in self.tables:
            raise KeyError(f"{name!r} was not measured; tables: {', '.join(self.tables)}")
        return self.tables[name]

    def to_dict(self) -> dict[str, Any]:
        """The document that `survey.json` holds: plain data, undefined numbers as null."""
        return {
            "schema": SCHEMA,
            "layerwright": self.settings.get("layerwright"),
            "model": self.model,
            "data": self.data,
            "settings": self.settings,
            "checks": [asdict(c) | {"error": _plain(c.error)} for c in self.checks],
            "notes": self.notes,
            "findings": [f.to_dict() for f in self.findings],
            "tables": {name: _table(frame) for name, frame in self.tables.items()},
        } | self._compared()

    def _compared(self) -> dict[str, Any]:
        if self.against is None:
            return {}
        tables = {name: _table(frame) for name, frame in self.comparison.items()}
        return {"against": {"model": self.against.model, "data": self.against.data, "tables": tables}}

    def save(self, folder: str | Path) -> Path:
        """Write `survey.json`, `tables/*.csv` and `report.html`; each is complete or not there.

        With a second model also `comparison/*.csv`, and its own survey in `against/`.

        Raises:
            UserError: the folder cannot be written.
        """
        from layerwright.report import render

        folder = Path(folder)
        document = self.to_dict()
        files = {"survey.json": lambda: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)}
        files |= {f"tables/{name}.csv": _csv(frame) for name, frame in self.tables.items()}
        files |= {f"comparison/{name}.csv": _csv(frame) for name, frame in self.comparison.items()}
        files["report.html"] = lambda: render(document)
        if self.against is not None:
            self.against.save(folder / "against")
        write_files(folder, files)
        return folder

    def _repr_html_(self) -> str:
        from layerwright.report import notebook_html

        return notebook_html(self.to_dict())


def _csv(frame: pd.DataFrame) -> Callable[[], str]:
    return lambda: frame.to_csv(index=False)


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return {"columns": list(frame.columns), "rows": rows} | frame.attrs


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: undefined numbers are null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
