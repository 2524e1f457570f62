"""A survey, and the lists of the command line, as text for a terminal; everything fits into 80 columns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from layerwright.core.claim import Claim
from layerwright.core.compare import summary
from layerwright.core.paper import Paper
from layerwright.core.registry import Measure
from layerwright.core.survey import Finding, Survey
from layerwright.report.prose import flowing

_BAR = 10
_TONES = {"act": "yellow", "watch": "magenta", "protect": "cyan", "good": "green"}


@dataclass(frozen=True)
class _Column:
    """One column of the table of blocks: whose numbers, which rows, and how far their index is from the block's."""

    heading: str
    table: str
    where: Mapping[str, Any] = field(default_factory=dict)
    index: str = "block"
    shift: int = 0
    bar: bool = False


_COLUMNS = (
    _Column("adds", "residual_contribution", {"part": "block"}),
    _Column("cosine", "residual_cosine", {"part": "block"}),
    _Column("angle", "angular_distance", {"gap": 1}),
    _Column("influence", "block_influence"),
    _Column("|J-I|", "jacobian_identity"),
    _Column("lens KL", "logit_lens", {"quantity": "kl"}, index="point", shift=1),
    _Column("loss if skipped", "skip_output", {"quantity": "loss_increase"}, index="source", bar=True),
)
_MEANINGS = {
    "adds": "length of the update over the stream's",
    "cosine": "between update and stream",
    "angle": "the block turns the stream by, over pi",
    "influence": "1 - cosine between input and output",
    "|J-I|": "distance of the block from the identity",
    "lens KL": "nat from the output, decoding after the block",
    "loss if skipped": "nat/token added",
}
# Numbers of the whole model: table, quantities shown, how to read them.
_SCALARS = (
    ("stream_growth", "the stream grows"),
    ("depth_score", "depth score"),
    ("effective_depth", "effective depth"),
    ("first_order_agreement", "first-order estimate of skips"),
)
# Letters that the first column of a table keeps in one line.
_FIRST = 36


def show(survey: Survey, console: Console | None = None, folder: Path | None = None) -> None:
    """Print what a survey found: the model, one row a block, the findings, the self-tests.

    Args:
        survey: the survey.
        console: where to print; standard output unless given.
        folder: where its files were written, if they were.
    """
    from layerwright.report.predicted import beside

    console = console or Console(highlight=False)
    console.print(*_heading(survey), sep="\n")
    console.print(_blocks(survey), *_legend(survey), *_scalars(survey), sep="\n")
    console.print()
    beside(survey, console)
    for finding in survey.findings:
        _print_finding(console, finding)
    if not survey.findings:
        console.print("Nothing stands out.\n", style="green")
    if survey.against is not None:
        _print_comparison(console, _other(survey, survey.against), summary(survey.comparison))
    _print_checks(console, survey)
    for note in survey.notes:
        console.print(f"note: {note}", style="dim", markup=False)
    console.print(_files(folder), style="bold" if folder else "dim", markup=False, soft_wrap=True)


def _heading(survey: Survey) -> Iterable[Text]:
    model, data = survey.model, survey.data
    shared = "" if model["unique_depth"] == model["depth"] else f" ({model['unique_depth']} distinct)"
    yield Text.assemble(
        (model["name"], "bold"),
        f"  {model['class']}: {model['depth']} blocks{shared} at {model['blocks']}, width {model['width']}, "
        f"{_large(model['parameters'])} parameters, {model['dtype']}",
    )
    tokens = "samples" if data["kind"] == "images" else "tokens"
    prefix = f", first {data['prefix']} of each left out" if data["prefix"] else ""
    yield Text(
        f"read {data['source']}: {data['tokens']:,} {tokens} in {data['sequences']:,} sequences{prefix}\n", "dim"
    )


def _values(survey: Survey, column: _Column) -> dict[int, float]:
    frame = survey.tables.get(column.table)
    if frame is None:
        return {}
    for name, value in column.where.items():
        frame = frame[frame[name] == value]
    places = frame[column.index] - column.shift
    return dict(zip(places.astype(int), frame["value"].astype(float), strict=True))


def _blocks(survey: Survey) -> Table:
    columns = [(c, values) for c in _COLUMNS if (values := _values(survey, c))]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("block", justify="right")
    for column, _ in columns:
        grid.add_column(column.heading, justify="left" if column.bar else "right", no_wrap=True)
    tops = [_full_bar(values) for _, values in columns]
    for block, source in enumerate(survey.model["order"]):
        name = str(block) if source == block else f"{block} ({source})"
        cells = [_cell(values.get(block), c, top) for (c, values), top in zip(columns, tops, strict=True)]
        grid.add_row(name, *cells)
    return grid


def _full_bar(values: Mapping[int, float]) -> float:
    """What fills a bar: the largest value but those of the first and last block, which dwarf the others."""
    inner = [v for k, v in values.items() if 0 < k < max(values) and math.isfinite(v)]
    return max(inner or [v for v in values.values() if math.isfinite(v)] or [0.0])


def _cell(value: float | None, column: _Column, top: float) -> Text:
    if value is None:
        return Text("")
    if not math.isfinite(value):
        return Text("not finite", "red")
    if not column.bar:
        return Text(f"{value:.3f}")
    length = round(_BAR * max(value, 0.0) / top) if top > 0 else 0
    bar = "█" * length if length <= _BAR else "█" * (_BAR - 1) + "▶"
    return Text.assemble(f"{value:7.3f} ", (bar, "yellow"))


def _legend(survey: Survey) -> Iterable[Text]:
    yield Text()
    for column in _COLUMNS:
        if column.table in survey.tables:
            yield Text(f"{column.heading:>15}  {_MEANINGS[column.heading]}", "dim")
    yield Text()


def _scalars(survey: Survey) -> Iterable[Text]:
    for name, title in _SCALARS:
        frame = survey.tables.get(name)
        if frame is None:
            continue
        units = frame.attrs.get("unit", "")
        parts = []
        for row in frame.to_dict("records"):
            unit = units.get(row["quantity"], "") if isinstance(units, Mapping) else units
            interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if math.isfinite(row.get("low", math.nan)) else ""
            number = f"{row['value']:.3g}" if math.isfinite(row["value"]) else "none"
            parts.append(f"{row['quantity'].replace('_', ' ')} {number}{'' if unit == '1' else ' ' + unit}{interval}")
        yield Text.assemble((f"{title}: ", "bold"), ", ".join(parts))


def _print_finding(console: Console, finding: Finding) -> None:
    console.print(Text(finding.title, f"bold {_TONES.get(finding.tone, 'white')}"))
    for evidence in finding.evidence:
        console.print(Padding(Text(f"- {evidence}"), (0, 0, 0, 2)))
    console.print(Padding(Text(finding.advice, "italic"), (0, 0, 1, 2)))


def _other(survey: Survey, against: Survey) -> str:
    """What the other survey was of: another model, other data, or both."""
    data = against.data["source"] if against.data["digest"] != survey.data["digest"] else ""
    if against.model["name"] == survey.model["name"] and data:
        return str(data)
    return f"{against.model['name']} on {data}" if data else str(against.model["name"])


def _print_comparison(console: Console, name: str, summed: pd.DataFrame) -> None:
    console.print(f"Against {name}: this survey minus the other", style="bold", markup=False)
    content = [
        (row.measure, f"{row.apart:.0f} of {row.rows}" if pd.notna(row.apart) else "", *map(number, row[4:]))
        for row in summed.itertuples()
    ]
    rows(("measure", "intervals apart", "mean difference", "largest"), content, console)
    console.print()


def _print_checks(console: Console, survey: Survey) -> None:
    failed = [check for check in survey.checks if not check.passed]
    for check in failed:
        line = f"self-test failed: {check.name}, error {check.error:.3g} against {check.tolerance:.3g}. {check.note}"
        console.print(Text(line, "bold red"))
    if survey.checks and not failed:
        passed = "; ".join(f"{check.name} (error {check.error:.1e})" for check in survey.checks)
        console.print(Text(f"self-tests passed: {passed}", "dim"))


def _files(folder: Path | None) -> str:
    if folder is None:
        return "No files were written; --out DIR writes report.html, survey.json and tables/*.csv."
    return f"\nReport: {folder / 'report.html'}   (also survey.json and tables/ in {folder})"


def _large(n: int) -> str:
    """A count in the largest unit that keeps three digits: 4.05 M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return str(n)


def rows(heading: Sequence[str], content: Iterable[Sequence[Any]], console: Console | None = None) -> None:
    """Print a plain table; where it is too wide, the names in its first column are the last to be broken."""
    written = [["" if cell is None else str(cell) for cell in row] for row in content]
    first = max((len(row[0]) for row in written if row), default=0)
    grid = Table(box=None, pad_edge=False, header_style="bold", show_header=any(heading))
    for k, name in enumerate(heading):
        grid.add_column(name, overflow="fold", min_width=None if k else min(first, _FIRST))
    for row in written:
        grid.add_row(*map(Text, row))
    (console or Console(highlight=False)).print(grid)


def claims(table: pd.DataFrame, console: Console | None = None, folder: Path | None = None) -> None:
    """Print verdicts, a claim a line, and where their page was written, if it was."""
    columns = ("claim", "verdict", "paper", "budget", "seeds", "date")
    rows(columns, table[list(columns)].itertuples(index=False), console)
    if folder is not None:
        (console or Console()).print(f"\nPage: {folder / 'claims.html'}", style="bold", markup=False, soft_wrap=True)


def explain_claim(claim: Claim, verdict: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a claim: what is tested and how, and the verdict on record with its numbers."""
    console = console or Console(highlight=False)
    console.print(Text(claim.name, "bold"))
    # Lines are broken anew for the terminal; paragraphs stay.
    test = "\n\n".join(" ".join(paragraph.split()) for paragraph in claim.protocol.split("\n\n"))
    facts = {"claim": claim.title, "test": test, "paper": cited(claim.paper)}
    kept = ("verdict", "budget", "seeds", "date", "version", "command")
    record(facts | {key: verdict[key] for key in kept if key in verdict}, console)
    numbers = verdict.get("measured", {}).values()
    if numbers:
        console.print()
        cells = [
            (n["meaning"], number(n["value"]), number(n["low"]), number(n["high"]), n["expected"]) for n in numbers
        ]
        rows(("number", "mean", "low", "high", "expected"), cells, console)


def number(value: float | None) -> str:
    """A number in three digits, or `none`."""
    return "none" if value is None else f"{value:.3g}"


def cited(paper: Paper | None) -> str:
    """A paper in one line."""
    return "" if paper is None else f"{paper.title} ({paper.year}), {paper.url}"


def record(values: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one record, a field a line."""
    rows(("", ""), values.items(), console)


def explain(measure: Measure, console: Console | None = None) -> None:
    """Print what a measure is: its facts, then its documentation."""
    console = console or Console(highlight=False)
    unit = measure.unit if isinstance(measure.unit, str) else ", ".join(f"{k} ({v})" for k, v in measure.unit.items())
    low, high = measure.range
    bounds = (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "")
    facts = {
        "unit": unit,
        "range": ", ".join(filter(None, bounds)) or "any number",
        "tier": measure.tier,
        "reads": ", ".join(measure.needs),
        "options": ", ".join(f"--set {measure.name}.{key}={value}" for key, value in measure.options.items()) or "none",
        "paper": cited(measure.paper),
    }
    explain_function(measure.name, measure.function, facts, console)


def explain_function(
    name: str, function: Callable[..., Any], facts: Mapping[str, Any], console: Console | None = None
) -> None:
    """Print what a method is: its facts, then its documentation."""
    console = console or Console(highlight=False)
    console.print(Text(name, "bold"))
    record(facts, console)
    console.print(Text("\n" + flowing(inspect.getdoc(function) or "")))
