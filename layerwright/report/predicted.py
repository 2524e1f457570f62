"""A prediction of a theory, as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from layerwright.core.theory import Prediction
from layerwright.report.terminal import rows


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


def _written(x: Any) -> str:
    return f"{x:.6g}" if isinstance(x, float) else str(x)
