"""The four kinds of picture (lines, bars, heat map, scatter) as SVG that stretches with the page.

Marks are drawn in an SVG stretched to its box; words stand beside it as HTML, so that type keeps its size on a phone.
Every mark that has a number carries it as a `<title>`: without the script browsers show it, with it the page does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from layerwright.report.palette import STEPS, step
from layerwright.report.scale import Scale, short, text, triple
from layerwright.report.sheet import Row

WIDE, HIGH = 1000, 500
MOST_TITLES = 6000
Labels = Sequence[tuple[float, str]]
Point = tuple[float, float, str, str]  # horizontal and vertical value, short name, words for hover
Cells = Mapping[tuple[int, int], tuple[float | None, str]]  # value and words for hover, by column and row


@dataclass(frozen=True)
class Series:
    """One line or group of bars: a name and a row for each place on the axis, None where there is no row."""

    name: str
    rows: Sequence[Row | None]


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; everything that is not Markup is escaped, a trailing underscore makes `class_` an attribute.

    Example:
        >>> str(element("a", "<b>", class_="x", aria_label="y"))
        '<a class="x" aria-label="y">&lt;b&gt;</a>'
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{''.join(escape(c) for c in children)}</{name}>")


def lines(places: Sequence[str], series: Sequence[Series], scale: Scale, label: str, names: tuple[str, str]) -> Markup:
    """Lines over evenly spaced places, with bands from `low` to `high`; a break where a value is undefined.

    Args:
        places: names of the places on the horizontal axis.
        series: one line each.
        scale: the vertical axis.
        label: what the picture shows, for readers who hear it.
        names: the axis' name in words, and what to call a place in the values shown on hover.
    """
    marks = [_grid(scale), _undefined_slots(series)]
    for k, one in enumerate(series):
        marks += [_band(one, scale, k), _line(one, scale, k)]
    return _frame(Markup("").join([*marks, _slots(places, series, names[1])]), label, scale, places, names[0])


def bars(places: Sequence[str], series: Sequence[Series], scale: Scale, label: str, names: tuple[str, str]) -> Markup:
    """Bars from zero with whiskers from `low` to `high`; arguments as in `lines`."""
    marks = [_grid(scale), _undefined_slots(series)]
    slot = WIDE / len(places)
    width = slot * 0.64 / len(series)
    for k, one in enumerate(series):
        for i, row in enumerate(one.rows):
            if row is not None and row["value"] is not None:
                left = slot * (i + 0.18) + width * k
                marks.append(_bar(row, scale, left, width * 0.94, k))
    return _frame(Markup("").join([*marks, _slots(places, series, names[1])]), label, scale, places, names[0])


def heat_map(
    across: Sequence[str], up: Sequence[str], cells: Cells, scale: Scale, ramp: str, label: str, names: tuple[str, str],
) -> Markup:  # fmt: skip
    """A grid of coloured cells, rows counted upwards; places without a cell stay empty.

    Args:
        across: names of the columns.
        up: names of the rows.
        cells: what there is to draw.
        scale: from value to colour.
        ramp: `s` or `d`, see `palette`.
        label: what the picture shows, for readers who hear it.
        names: what columns and rows are.
    """
    if len(cells) <= MOST_TITLES:
        drawn = [
            element("rect", element("title", words), x=x, y=len(up) - 1 - y, width=1, height=1,
                    class_="cell hit " + ("undefined" if value is None else f"{ramp}{step(scale.at(value))}"))
            for (x, y), (value, words) in cells.items()
        ]  # fmt: skip
    else:
        drawn = _merged(cells, len(up), scale, ramp)
    svg = element(
        "svg", *drawn, viewBox=f"0 0 {len(across)} {len(up)}", preserveAspectRatio="none", class_="plot cells",
        role="img", aria_label=label, tabindex=0, style=f"height:{_height(up):.1f}rem",
    )  # fmt: skip
    key = colour_key(scale, ramp)
    return _around(svg, _middles(up), _middles(across), names[0], names[1]) + key


def scatter(points: Sequence[Point], scale: Scale, label: str, names: tuple[str, str]) -> Markup:
    """Named points on two equal axes, with the diagonal on which both numbers agree.

    Args:
        points: one dot each.
        scale: both axes.
        label: what the picture shows, for readers who hear it.
        names: names of the axes.
    """
    ticks = scale.ticks()
    grid = "".join(f"M{WIDE * scale.at(t):.1f} 0V{HIGH}" for t in ticks)
    marks = [_grid(scale), element("path", class_="grid", d=grid)]
    marks.append(element("path", class_="diagonal", d=f"M0 {HIGH}L{WIDE} 0"))
    over = []
    for x, y, name, words in points:
        spot = f"M{WIDE * scale.at(x):.1f} {HIGH * (1 - scale.at(y)):.1f}h0"
        marks.append(element("path", class_="dot big k0", d=spot))
        marks.append(element("path", element("title", words), class_="hit spot", d=spot))
        over.append(element("span", name, style=f"left:{scale.at(x):.1%};bottom:{scale.at(y):.1%}"))
    labels = [(scale.at(t), short(t)) for t in ticks]
    svg = _stretched(Markup("").join(marks), label)
    return _around(svg, labels, labels, names[0], names[1], element("div", *over, class_="names"))


def colour_key(scale: Scale, ramp: str) -> Markup:
    """The legend of a colour ramp, with round numbers under it."""
    ticks = "".join(
        element("span", short(t), style=f"left:{(scale.at(t) * (STEPS - 1) + 0.5) / STEPS:.1%}") for t in scale.ticks(4)
    )
    steps = Markup("").join(element("i", class_=f"{ramp}{k}") for k in range(STEPS))
    return element("div", element("div", steps, class_="ramp"), element("div", Markup(ticks), class_="ticks"),
                   class_="key", aria_hidden="true")  # fmt: skip


def words(row: Row, statistic: str = "value") -> str:
    """The numbers of a row in words, the chosen statistic first, e.g. `0.412 [0.398, 0.427] · max 1.90`."""
    value, low, high = triple(row["value"], row.get("low"), row.get("high"))
    out = {"value": f"{value} [{low}, {high}]" if low else value}
    out |= {s: f"{name} {text(row[s])}" for s, name in (("p95", "95 %"), ("max", "max")) if row.get(s) is not None}
    first = out.pop(statistic, text(row.get(statistic)))
    return " · ".join([first, *(("mean " if s == "value" else "") + said for s, said in out.items())])


def _frame(marks: Markup, label: str, scale: Scale, places: Sequence[str], name: str) -> Markup:
    ticks = [(scale.at(t), short(t)) for t in scale.ticks()]
    return _around(_stretched(marks, label), ticks, _middles(places), name)


def _stretched(marks: Markup, label: str) -> Markup:
    return element("svg", marks, viewBox=f"0 0 {WIDE} {HIGH}", preserveAspectRatio="none", class_="plot",
                   role="img", aria_label=label, tabindex=0)  # fmt: skip


def _around(svg: Markup, left: Labels, below: Labels, name: str, up: str = "", over: str = "") -> Markup:
    """An SVG with the words of its axes."""
    # A minus sign is wider than a figure.
    wide = min(max((len(t) + 0.5 * t.count("−") for _, t in left), default=1), 22)
    y = element("div", *(element("span", t, style=f"bottom:{at:.2%}") for at, t in left), class_="y")
    x = element("div", *(element("span", t, style=f"left:{at:.2%}") for at, t in below), class_="x")
    upward = element("div", "↑ ", up, class_="up") if up else ""
    return element("div", upward, y, element("div", svg, over, class_="area"), x,
                   element("div", name, class_="name"), class_="chart", style=f"--wide:{wide:g}ch")  # fmt: skip


def _middles(places: Sequence[str]) -> Labels:
    """The middle of each place with its name; of too many numbers every 2nd, 5th, 10th, …; words are all kept."""
    n = len(places)
    if _are_words(places):
        return [((k + 0.5) / n, place) for k, place in enumerate(places)]
    most = 13 if max(map(len, places)) < 3 else 8
    every = next(s * 10**p for p in range(9) for s in (1, 2, 5) if n <= s * 10**p * most)
    first = next((k for k in range(min(every, n)) if places[k].isdigit() and int(places[k]) % every == 0), 0)
    return [((k + 0.5) / n, places[k]) for k in range(first, n, every)]


def _are_words(places: Sequence[str]) -> bool:
    return not all(p[-1:].isdigit() and p[0] in "−0123456789" for p in places)


def _height(up: Sequence[str]) -> float:
    """Height of a heat map in rem: rows of words have to stay readable, rows of numbers may get thin."""
    return max(1.2 * len(up), 4.0) if _are_words(up) else min(max(1.6 * len(up), 4.0), 26.0)


def _grid(scale: Scale) -> Markup:
    rules = "".join(f"M0 {HIGH * (1 - scale.at(t)):.1f}H{WIDE}" for t in scale.ticks())
    zero = f"M0 {HIGH * (1 - scale.at(0.0)):.1f}H{WIDE}" if scale.low < 0 < scale.high else f"M0 {HIGH}H{WIDE}"
    return element("path", class_="grid", d=rules) + element("path", class_="zero", d=zero)


def _undefined_slots(series: Sequence[Series]) -> Markup:
    slot = WIDE / max(len(series[0].rows), 1)
    gone = [i for i, rows in enumerate(zip(*(s.rows for s in series))) if any(r and r["value"] is None for r in rows)]
    return Markup("").join(
        element("rect", class_="undefined", x=f"{i * slot:.1f}", y=0, width=f"{slot:.1f}", height=HIGH) for i in gone
    )


def _slots(places: Sequence[str], series: Sequence[Series], axis: str) -> Markup:
    """One invisible strip for each place; it carries the numbers of all series there."""
    slot = WIDE / len(places)
    strips = []
    for i, place in enumerate(places):
        here = [f"{s.name} {words(row)}".strip() for s in series if (row := s.rows[i])]
        if here:
            said = element("title", "\n".join([f"{axis} {place}", *here]))
            box = {"x": f"{i * slot:.1f}", "y": 0, "width": f"{slot:.1f}", "height": HIGH}
            strips.append(element("rect", said, class_="hit", **box))
    return Markup("").join(strips)


def _band(one: Series, scale: Scale, k: int) -> Markup:
    drawn = []
    for run in _runs(one, "low", "high"):
        upper = [f"{x:.1f} {HIGH * (1 - scale.at(row['high'])):.1f}" for x, row in run]
        lower = [f"{x:.1f} {HIGH * (1 - scale.at(row['low'])):.1f}" for x, row in reversed(run)]
        drawn.append("M" + "L".join(upper + lower) + "Z")
    return element("path", class_=f"band k{k}", d="".join(drawn)) if drawn else Markup("")


def _line(one: Series, scale: Scale, k: int) -> Markup:
    line, dots = [], []
    for run in _runs(one):
        spots = [f"{x:.1f} {HIGH * (1 - scale.at(row['value'])):.1f}" for x, row in run]
        line.append("M" + "L".join(spots))
        dots += [f"M{spot}h0" for spot in spots]
    if not dots:
        return Markup("")
    few = element("path", class_=f"dot k{k}", d="".join(dots)) if len(one.rows) <= 64 else ""
    return element("path", class_=f"line k{k}", d="".join(line)) + few


def _runs(one: Series, *also: str) -> list[list[tuple[float, Row]]]:
    """Stretches of places that have defined numbers."""
    runs: list[list[tuple[float, Row]]] = [[]]
    for i, row in enumerate(one.rows):
        if row is not None and all(row.get(c) is not None for c in ("value", *also)):
            runs[-1].append((WIDE * (i + 0.5) / len(one.rows), row))
        elif row is not None:
            runs.append([])
    return [run for run in runs if run]


def _bar(row: Row, scale: Scale, left: float, width: float, k: int) -> Markup:
    zero, top = HIGH * (1 - scale.at(max(scale.low, 0.0))), HIGH * (1 - scale.at(row["value"]))
    bar = element("rect", class_=f"bar k{k}", x=f"{left:.1f}", width=f"{width:.1f}",
                  y=f"{min(zero, top):.1f}", height=f"{max(abs(zero - top), 1):.1f}")  # fmt: skip
    if row.get("low") is None or row.get("high") is None:
        return bar
    ends = f"{HIGH * (1 - scale.at(row['low'])):.1f}V{HIGH * (1 - scale.at(row['high'])):.1f}"
    return bar + element("path", class_="whisker", d=f"M{left + width / 2:.1f} {ends}")


def _merged(cells: Cells, high: int, scale: Scale, ramp: str) -> list[Markup]:
    """One path a colour: for towers so deep that a title for each cell would weigh too much."""
    paths: dict[str, list[str]] = {}
    for (x, y), (value, _) in cells.items():
        name = "undefined" if value is None else f"{ramp}{step(scale.at(value))}"
        paths.setdefault(name, []).append(f"M{x} {high - 1 - y}h1v1h-1z")
    return [element("path", class_=f"cell {name}", d="".join(d)) for name, d in paths.items()]
