"""A prediction of a theory, as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from layerwright.core.survey import Survey
from layerwright.core.theory import Prediction
from layerwright.report.terminal import number, rows

# Tables of a survey that hold theory beside measurement, and what their rows are.
_BESIDE = {"signal_propagation": "layer", "independent_branches": "point"}


def prediction(found: Prediction, console: Console | None = None) -> None:
    """Print what a theory predicts: its table, its notes, and what it assumes."""
    console = console or Console(highlight=False)
    units = {column: f"{column} ({unit})" for column, unit in found.units.items() if unit != "1"}
    heading = [units.get(column, column) for column in found.table.columns]
    rows(heading, ([_written(x) for x in row] for row in found.table.itertuples(index=False)), console)
    for note in found.notes:
        console.print(Text(f"\nnote: {note}"))
    console.print(
        Text(f"\nassumes: {found.theory['assumes']}"), Text(f"paper: {found.theory['paper']['url']}"), sep="\n"
    )


def beside(survey: Survey, console: Console) -> None:
    """Print what theory predicts beside what a survey measured, a layer or a state of the stream a row."""
    for table, place in _BESIDE.items():
        if table not in survey.tables:
            continue
        frame = survey.tables[table]
        console.print(Text(frame.attrs["title"], "bold"))
        frame = frame.assign(title=frame.get("name", frame[place]), kind=frame.get("quantity", "size"))
        wide = frame.pivot(index=[place, "title"], columns=["kind", "numbers"], values="value")
        kinds = dict.fromkeys(frame["kind"])
        content = [
            [str(title), *(number(row[kind, whose]) for kind in kinds for whose in ("measured", "predicted"))]
            for (_, title), row in wide.iterrows()
        ]
        rows([place, *(word for kind in kinds for word in (kind, "theory"))], content, console)
        console.print()


def _written(x: Any) -> str:
    return f"{x:.6g}" if isinstance(x, float) else str(x)
