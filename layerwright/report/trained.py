"""What training on came to, as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from layerwright.report.terminal import number, rows


def show(found: Any, folder: Path | None = None, console: Console | None = None) -> None:
    """Print what training on came to: the curve in a few rows, then the held-out loss before and after."""
    console = console or Console(highlight=False)
    measured = found.curve[found.curve["validation_loss"].notna()]
    cells = [
        (f"{row.step}", f"{row.tokens:,}", number(row.loss if row.step else None), f"{row.validation_loss:.4f}")
        for row in measured.itertuples()
    ]
    rows(("step", "tokens", "loss", "held-out loss"), cells, console)
    change = found.held_out
    console.print(
        f"\nheld-out loss {change.before:.4f} → {change.after:.4f} nat/token, change {change.change:+.4f} "
        f"[{change.low:+.4f}, {change.high:+.4f}]"
    )
    for note in found.notes:
        console.print(f"note: {note}")
    if folder is not None:
        console.print(f"\nsaved in {folder}", soft_wrap=True)
