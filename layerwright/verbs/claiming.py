"""`claims`: what papers claim, tested."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def claims(
    names: Iterable[str] = (),
    *,
    all: bool = False,
    budget: str = "small",
    out: str | Path | None = None,
    seeds: int | None = None,
    progress: bool = False,
) -> DataFrame:
    """List what papers claim with the verdicts recorded here, or run the experiments again.

    Args:
        names: claims to run; with none, and without `all`, the recorded verdicts are listed.
        all: run every claim.
        budget: `small` (minutes for all) or `full`.
        out: folder for `claims.json`, `claims.html` and the result of every trial; a run that was stopped goes on from
            those.
        seeds: trials of each claim, instead of the budget's own number.
        progress: show progress bars.

    Returns:
        one row a claim: verdict (`holds`, `fails`, `inconclusive`, `not run`), paper, budget, seeds, date, version and
        the command that gets it again. `attrs["records"]` holds everything: numbers, intervals, conditions, figure.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright.claims import ledger

    if not all and not (names := [names] if isinstance(names, str) else list(names)):
        return ledger.frame(ledger.recorded())
    folder = None if out is None else Path(out)
    return ledger.frame(ledger.run(names, all_of_them=all, budget=budget, seeds=seeds, out=folder, progress=progress))
