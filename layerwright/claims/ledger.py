"""Running claims and keeping the verdicts: one JSON file a trial, `claims.json` over all, and a page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from layerwright import __version__
from layerwright.claims.page import page
from layerwright.core.claim import BUDGETS, CLAIMS, Claim, Verdict, choose
from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.progress import bars
from layerwright.core.trials import Budget, plain

Record = dict[str, Any]
SCHEMA = 1
RECORDED = Path(__file__).with_name("recorded.json")
COLUMNS = ("claim", "verdict", "paper", "budget", "seeds", "date", "version", "command")


def recorded() -> list[Record]:
    """The verdicts that come with the package, and an empty record for each claim that has none."""
    known = read(RECORDED)
    missing = [c for c in CLAIMS.values() if c.name not in {r["claim"] for r in known}]
    return [*known, *({"claim": c.name, "verdict": "not run", "paper": c.paper.to_dict()} for c in missing)]


def run(
    names: Iterable[str], *, all_of_them: bool, budget: str, seeds: int | None, out: Path | None, progress: bool
) -> list[Record]:
    """Run claims, keep every trial under `out/trials`, and write `claims.json` and `claims.html` after each claim.

    A run that was stopped goes on from the trials that it kept; verdicts of other claims in `out` stay.

    Raises:
        UserError: a claim or a budget is unknown, there are fewer than two seeds, or `out` cannot be written.
    """
    chosen = choose(names, all_of_them)
    if budget not in BUDGETS:
        raise UserError(f"got budget {budget!r}; expected one of {', '.join(BUDGETS)}")
    if seeds is not None and seeds < 2:
        raise UserError(f"got {seeds} seeds; expected at least 2: a verdict rests on the spread over seeds")
    before = [] if out is None else read(out / "claims.json")
    made: list[Record] = []
    with bars(progress) as advance:
        for claim in chosen:
            folder = None if out is None else out / "trials" / claim.name / budget
            given = Budget(budget, seeds or claim.seeds[budget], folder, partial(advance, claim.name))
            made.append(_record(claim, given, claim.run(0, given), standard=seeds is None))
            if out is not None:
                save(out, _merged(before, made))
    return made


def _record(claim: Claim, budget: Budget, verdict: Verdict, standard: bool) -> Record:
    """A verdict with all that is needed to get it again."""
    return {
        "claim": claim.name,
        "title": claim.title,
        "protocol": claim.protocol,
        "paper": claim.paper.to_dict(),
        "verdict": verdict.word,
        "budget": budget.name,
        "seeds": list(range(budget.seeds)),
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "command": f"lw claims run {claim.name} --budget {budget.name}"
        + ("" if standard else f" --seeds {budget.seeds}"),
        **plain(verdict.to_dict()),
    }


def _merged(before: list[Record], made: list[Record]) -> list[Record]:
    """Earlier records, those of the same claim and budget replaced."""
    merged = {(r["claim"], r["budget"]): r for r in [*before, *made]}
    return [merged[key] for key in sorted(merged)]


def save(out: Path, records: list[Record]) -> None:
    """Write `claims.json` and `claims.html`."""
    document = {"schema": SCHEMA, "layerwright": __version__, "claims": records}
    files = {
        "claims.json": lambda: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False),
        "claims.html": lambda: page(records),
    }
    write_files(out, files)


def read(file: Path) -> list[Record]:
    """The records of a `claims.json`; none where there is no file.

    Raises:
        UserError: the file is something else.
    """
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(f"{file} is not a claims.json that this version wrote; move it away, or choose another --out")
    return list(document["claims"])


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a record; the records themselves are in `attrs["records"]`."""
    records = list(records)
    short = [{"paper": r["paper"]["arxiv"], "seeds": len(r.get("seeds", ()))} for r in records]
    rows = [{column: r.get(column, "") for column in COLUMNS} | s for r, s in zip(records, short)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = {"name": "claims", "records": [dict(r) for r in records]}
    return table
