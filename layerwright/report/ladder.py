"""The ladder of checks after an edit, as text for a terminal; everything fits into 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerwright.core.rungs.ladder import Ladder, Rung
from layerwright.core.rungs.outcome import FAILED, MEASURED, NOT_RUN, PASSED

_TONES = {PASSED: "green", FAILED: "bold red", MEASURED: "cyan", NOT_RUN: "dim"}


def show(ladder: Ladder, console: Console | None = None) -> None:
    """Print what the checks found: a row a rung, what was measured, its limit, the verdict; then the whole in a line.

    Args:
        ladder: as `verify` gives it.
        console: where to print; standard output unless given.
    """
    console = console or Console(highlight=False)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("rung", no_wrap=True)
    grid.add_column("measured", ratio=1, overflow="fold")
    grid.add_column("limit", max_width=18, overflow="fold")
    grid.add_column("verdict", no_wrap=True)
    for rung in ladder.rungs:
        grid.add_row(*_cells(rung))
    console.print(grid)
    console.print()
    console.print(_verdict(ladder))


def _cells(rung: Rung) -> Iterable[Text]:
    tone = _TONES[rung.verdict]
    quiet = "dim" if rung.verdict == NOT_RUN else ""
    yield Text(f"{rung.number} {rung.name}", quiet)
    yield Text(rung.finding, tone if rung.verdict == FAILED else quiet)
    yield Text(rung.limit, "dim")
    yield Text(rung.verdict, tone)


def _verdict(ladder: Ladder) -> Text:
    """The whole ladder in a line: what failed, or how far it was climbed and what decided nothing."""
    if (failed := ladder.failed) is not None:
        return Text(f"Failed at rung {failed.number}, {failed.name}: {failed.finding}", "bold red")
    counts = {verdict: sum(rung.verdict == verdict for rung in ladder.rungs) for verdict in _TONES}
    if not counts[PASSED]:
        return Text("Nothing failed, and nothing was held to a limit.", "bold yellow")
    said = f"{counts[PASSED]} rungs passed" if counts[PASSED] > 1 else "1 rung passed"
    measured = f", {counts[MEASURED]} measured without a limit" if counts[MEASURED] else ""
    left_out = f", {counts[NOT_RUN]} not run" if counts[NOT_RUN] else ""
    return Text(f"{said}{measured}{left_out}.", "bold green")
