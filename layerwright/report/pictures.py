"""From a table to its picture: lines over one axis, a heat map over two, plain numbers over none.

The choice rests on the index columns alone (`Sheet.axes`, `Sheet.kinds`), so that a new measure needs no edit here;
`looks.py` only adds words and options.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from markupsafe import Markup

from layerwright.report import chart
from layerwright.report.chart import Series
from layerwright.report.looks import LOOKS, WORDS, Look
from layerwright.report.scale import Kind, Scale, fit, text, triple
from layerwright.report.sheet import Row, Sheet, spoken

MOST_LINES = 9
MOST_MAPS = 12
MOST_NUMBERS = 24
COMPARABLE = 10.0


@dataclass(frozen=True)
class Panel:
    """One drawing: one view or several to switch between, heading, unit, what to know about its scale, legend."""

    views: list[tuple[str, Markup]]
    heading: str = ""
    unit: str = ""
    note: str = ""
    legend: list[str] = field(default_factory=list)
    mark: str = "line"


@dataclass(frozen=True)
class Number:
    """A number that stands alone, with its interval; `before` is said in front of it, as in block 7."""

    name: str
    before: str
    value: str
    interval: str
    unit: str


@dataclass(frozen=True)
class Card:
    """A table as the page shows it."""

    sheet: Sheet
    look: Look
    title: str
    panels: list[Panel]
    numbers: list[Number]

    @property
    def legend(self) -> Panel | None:
        """The panel whose legend stands for all, where several panels have the same one."""
        first = self.panels[0] if len(self.panels) > 1 else None
        return first if first and first.legend and all(p.legend == first.legend for p in self.panels) else None


def card(sheet: Sheet, tables: Mapping[str, Sheet]) -> Card:
    """The card of one table; `tables` holds the others, for the pictures that compare two."""
    look = LOOKS.get(sheet.name) or Look(caption=_generic_caption(sheet))
    title = look.title or str(sheet.spec.get("title") or spoken(sheet.name).capitalize())
    special = COMPARISONS.get(sheet.name)
    panels = (special(sheet, tables) if special else []) or list(_panels(sheet, look, title))
    return Card(sheet, look, title, panels, [] if sheet.axes else _numbers(sheet))


def _panels(sheet: Sheet, look: Look, title: str) -> Iterator[Panel]:
    others = [k for k in sheet.kinds if k != "quantity"]
    if "value" not in sheet.columns or not sheet.rows or len(sheet.axes) > 3:
        return
    if not sheet.axes:
        if len(others) == 2 and len(sheet.rows) > MOST_NUMBERS:
            for quantity in sheet.quantities or [""]:
                yield _over_two_kinds(sheet, others, quantity, title)
        return
    if len(sheet.axes) == 1:
        for group in _groups(sheet, others, look.first):
            yield _over_one_axis(sheet, look, title, group, others)
        return
    # A third axis is a series of maps, as words are.
    fixed = [*sorted(sheet.kinds, key=lambda k: k != "quantity"), *sheet.axes[2:]]
    maps = list(product(*(sorted(sheet.values_of(k), key=lambda v: v != look.first) for k in fixed)))
    for chosen in maps[:MOST_MAPS]:
        yield _over_two_axes(sheet, look, title, dict(zip(fixed, chosen, strict=True)))


def _groups(sheet: Sheet, others: list[str], first: str) -> list[list[str]]:
    """Which quantities share a drawing: those of one unit and similar size, where nothing else makes several lines."""
    if not sheet.quantities:
        return [[]]
    groups: list[list[str]] = []
    for quantity in sorted(sheet.quantities, key=lambda q: q != first):
        for group in groups:
            alike = sheet.unit(group[0]) == sheet.unit(quantity)
            if not others and alike and _ratio_of_peaks(sheet, group[0], quantity) <= COMPARABLE:
                group.append(quantity)
                break
        else:
            groups.append([quantity])
    return groups


def _ratio_of_peaks(sheet: Sheet, a: str, b: str) -> float:
    known = [[abs(r["value"]) for r in sheet.where(quantity=q) if r["value"] is not None] for q in (a, b)]
    peaks = [max(values, default=0.0) for values in known]
    return max(peaks) / min(peaks) if min(peaks) > 0 else 1.0


def _over_one_axis(sheet: Sheet, look: Look, title: str, group: list[str], others: list[str]) -> Panel:
    axis = sheet.axes[0]
    places = sheet.values_of(axis)
    series = [Series(name, [by.get(p) for p in places]) for name, by in _series(sheet, axis, group, others)]
    heading = say(group[0]) if group and (len(group) == 1) else ""
    label = ": ".join(filter(None, (title, heading)))
    if len(series) > MOST_LINES:
        return _many_series(sheet, series, places, heading, sheet.unit(group[0] if group else None), label)
    scale = _fit_series(series, look.axis)
    draw = chart.bars if look.mark == "bar" else chart.lines
    view = draw([text(p) for p in places], series, scale, label, (say(axis), spoken(axis)))
    names = [s.name for s in series]
    legend = names if names not in ([""], ["block"]) else []
    return Panel([("", view)], heading, _shown(sheet.unit(group[0] if group else None)), scale.note, legend, look.mark)


def _series(sheet: Sheet, axis: str, group: list[str], others: list[str]) -> Iterator[tuple[str, dict[Any, Row]]]:
    """Name and rows of each line: one for every quantity of the group and every combination of the other kinds."""
    kinds = [*others, *(["quantity"] if group else [])]
    options = [*(sheet.values_of(k) for k in others), *([group] if group else [])]
    short = endings(v for k in others for v in sheet.values_of(k))
    for chosen in product(*options):
        rows = sheet.by(axis, **dict(zip(kinds, chosen, strict=True)))
        if rows:
            named = kinds if len(group) != 1 else kinds[:-1]
            yield ", ".join(short.get(c) or say(c, k) for c, k in zip(chosen, named, strict=False)), rows


def _fit_series(series: list[Series], kind: Kind | None = None) -> Scale:
    """The vertical axis that shows all lines with their intervals."""
    return fit((r.get(c) for s in series for r in s.rows if r for c in ("value", "low", "high")), kind)


def _many_series(sheet: Sheet, series: list[Series], places: list[Any], heading: str, unit: str, label: str) -> Panel:
    """More lines than can be told apart become the rows of a heat map."""
    cells = {
        (x, y): (row["value"], f"{one.name}\n{spoken(sheet.axes[0])} {places[x]}: {chart.words(row)}")
        for y, one in enumerate(series)
        for x, row in enumerate(one.rows)
        if row is not None
    }
    scale, ramp = _colours(value for value, _ in cells.values())
    names = (say(sheet.axes[0]), "")
    view = chart.heat_map([text(p) for p in places], [s.name for s in series], cells, scale, ramp, label, names)
    return Panel([("", view)], heading, _shown(unit), scale.note)


def _over_two_axes(sheet: Sheet, look: Look, title: str, chosen: dict[str, str]) -> Panel:
    across, up = sheet.axes[:2]
    columns, rows = sheet.values_of(across), sheet.values_of(up)
    heading = ", ".join(f"{spoken(k)} {v}" if k in sheet.axes else say(v, k) for k, v in chosen.items())
    views, note = [], ""
    for statistic in [s for s in look.statistics if s in sheet.columns] or ["value"]:
        here = list(sheet.where(**chosen))
        scale, ramp = _colours(r[statistic] for r in here)
        cells = {
            (columns.index(r[across]), rows.index(r[up])): (
                r[statistic], f"{say(up)} {r[up]}, {say(across)} {r[across]}\n{chart.words(r, statistic)}")
            for r in here
        }  # fmt: skip
        label = ": ".join(filter(None, (title, heading)))
        view = chart.heat_map([text(c) for c in columns], [text(r) for r in rows], cells, scale, ramp, label,
                              (say(across), say(up)))  # fmt: skip
        views.append((say(statistic), view))
        note = note or scale.note.replace("logarithmic axis", "logarithmic colours")
    return Panel(views, heading, _shown(sheet.unit(chosen.get("quantity"))), note)


def _over_two_kinds(sheet: Sheet, kinds: list[str], quantity: str, title: str) -> Panel:
    """Names against names: a row for each of the first kind, a column for each of the second."""
    chosen = {"quantity": quantity} if quantity else {}
    up, across = (sheet.values_of(kind) for kind in kinds)
    here = list(sheet.where(**chosen))
    scale, ramp = _colours(r["value"] for r in here)
    cells = {
        (across.index(r[kinds[1]]), up.index(r[kinds[0]])): (
            r["value"], f"{r[kinds[0]]}, {say(r[kinds[1]])}\n{chart.words(r)}")
        for r in here
    }  # fmt: skip
    heading = say(quantity) if quantity else ""
    columns, rows = ([endings(values).get(v) or say(v) for v in values] for values in (across, up))
    label = ": ".join(filter(None, (title, heading)))
    view = chart.heat_map(columns, rows, cells, scale, ramp, label, (spoken(kinds[1]), spoken(kinds[0])))
    return Panel([("", view)], heading, _shown(sheet.unit(quantity)), scale.note)


def _colours(values: Any) -> tuple[Scale, str]:
    """Scale and ramp for a heat map: diverging where there are negative numbers."""
    known = list(values)
    negative = any(v is not None and v < 0 for v in known)
    return fit(known, symmetric=negative), "d" if negative else "s"


def _predicted_and_measured(sheet: Sheet, tables: Mapping[str, Sheet]) -> list[Panel]:
    measured = tables["skip_output"].by("source", quantity="loss_increase") if "skip_output" in tables else {}
    both = [(b, r["value"], measured[b]["value"]) for b, r in sheet.by("block").items() if b in measured]
    points = [
        (x, y, str(b), f"block {b}\npredicted {text(x)}\nmeasured {chart.words(measured[b])}")
        for b, x, y in both
        if x is not None and y is not None
    ]
    if not points:
        return []
    scale = fit([v for p in points for v in p[:2]])
    names = ("predicted increase", "measured increase")
    across = chart.scatter(points, scale, "Predicted against measured loss increase", names)
    predicted = sheet.by("block")
    places = [b for b in predicted if b in measured]
    series = [Series("predicted", [predicted[b] for b in places]), Series("measured", [measured[b] for b in places])]
    label = "Predicted and measured loss increase by block"
    along_scale = _fit_series(series)
    along = chart.lines([text(b) for b in places], series, along_scale, label, ("block", "block"))
    unit = _shown(sheet.unit())
    return [
        Panel([("", across)], "Against each other", unit, scale.note),
        Panel([("", along)], "Block by block", unit, along_scale.note, ["predicted", "measured"]),
    ]


COMPARISONS = {"first_order_skip": _predicted_and_measured}


def _numbers(sheet: Sheet) -> list[Number]:
    """The rows of a table without an axis, where they are few enough to stand as numbers."""
    if "value" not in sheet.columns or len(sheet.rows) > MOST_NUMBERS:
        return []
    out = []
    for row in sheet.rows:
        value, low, high = triple(row["value"], row.get("low"), row.get("high"))
        name = ", ".join(say(row[c], c) for c in sheet.index)
        unit = _shown(sheet.unit(row.get("quantity")))
        counts_blocks = unit.startswith("block")
        interval = f"{low} to {high}" if low else ""
        out.append(Number(name, "block" if counts_blocks else "", value, interval, "" if counts_blocks else unit))
    return out


def endings(names: Iterable[Any]) -> dict[str, str]:
    """Dotted names of a model's code by their last parts, as many as tell them apart.

    Example:
        >>> endings(["self_attn.q_proj", "mlp.fc.in", "attn.fc.in", "next block"])
        {'self_attn.q_proj': 'q_proj', 'mlp.fc.in': 'mlp.fc.in', 'attn.fc.in': 'attn.fc.in'}
    """
    dotted = list(dict.fromkeys(name for name in names if isinstance(name, str) and "." in name and " " not in name))

    def ending(name: str, parts: int) -> str:
        return ".".join(name.split(".")[-parts:])

    found = {}
    for name in dotted:
        lengths = range(1, name.count(".") + 2)
        unique = (n for n in lengths if sum(ending(other, n) == ending(name, n) for other in dotted) == 1)
        found[name] = ending(name, next(unique, lengths[-1]))
    return found


def say(name: Any, column: str = "quantity") -> str:
    """A name from a table in words; names from a model's own code, such as those of matrices, stay as they are."""
    return (WORDS.get(str(name)) or spoken(name)) if column in ("quantity", "part") else str(name)


def _shown(unit: str) -> str:
    return "" if unit == "1" else unit


def _generic_caption(sheet: Sheet) -> str:
    if len(sheet.axes) == 1:
        return "A band, where there is one, is the 95 % interval over sequences."
    return "Colour is the value." if len(sheet.axes) == 2 else ""
