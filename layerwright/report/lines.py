"""The picture of a verdict or a prediction: lines as one SVG that stands alone, on light and on dark paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from layerwright.report.chart import element
from layerwright.report.scale import Scale, fit, short

WIDE, HIGH = 480, 208  # of the axes alone
LEFT, RIGHT, TOP = 58, 470, 26
ROW = 19  # of a legend
LETTER = 7.3  # a usual width, for a legend that has to fit before anything is drawn
# Middle tones: readable on white and on black, told apart with any colour vision.
COLOURS = ("#2f7fc1", "#d9660f", "#1a9570", "#a45fa0", "#8a7a2e")

Points = Sequence[tuple[float, ...]]


@dataclass(frozen=True)
class _Axes:
    """Two scales, and the heights between which they are drawn."""

    x: Scale
    y: Scale
    top: float

    @property
    def bottom(self) -> float:
        return self.top + HIGH

    def place(self, x: float, y: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * self.x.at(x), self.bottom - HIGH * self.y.at(y)


def lines(
    series: Mapping[str, Points], *, across: str, up: str, label: str, log: bool = False, log_across: bool = False
) -> str:
    """Lines through points.

    Args:
        series: points `(x, y)`, or `(x, y, low, high)` with an interval, by the name of their line; a name that starts
            with `(` is drawn dashed.
        across: name and unit of the horizontal axis.
        up: name and unit of the vertical axis.
        label: what the picture shows, for readers who hear it.
        log: whether the vertical axis is logarithmic; then every y has to be positive.
        log_across: the same of the horizontal one.

    Returns:
        an `<svg>` element.

    Example:
        >>> lines({"a": [(0, 1), (1, 2)]}, across="block", up="σ (1)", label="σ by block").startswith("<svg")
        True
    """
    points = [point for line in series.values() for point in line]
    x = fit((p[0] for p in points), zero=False, kind="log" if log_across else "linear")
    y = fit((n for p in points for n in p[1:]), zero=False, kind="log" if log else "linear")
    places, rows = _legend_places([name.strip("()") for name in series])
    axes = _Axes(x, y, TOP + ROW * rows)
    whole = all(float(p[0]).is_integer() for p in points)
    marks = [_grid(axes, whole), _names(axes, across, up)]
    for k, (name, line) in enumerate(series.items()):
        marks += [_line(line, axes, k, dashed=name.startswith("(")), _legend(name.strip("()"), k, *places[k])]
    return str(
        element(
            "svg", *marks, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDE} {axes.bottom + 48:g}", role="img",
            aria_label=label, font_family="system-ui, sans-serif", font_size=13, fill="currentColor",
            style=f"width:100%;max-width:{WIDE * 1.4:g}px;height:auto",
        )
    )  # fmt: skip


def _grid(axes: _Axes, whole: bool) -> Markup:
    """Ticks and lines; where only whole numbers are asked of the horizontal axis, as of layers, it has no others."""
    marks = []
    for tick in axes.y.ticks():
        at = axes.place(axes.x.low, tick)[1]
        marks.append(element("path", d=f"M{LEFT} {at:.1f}H{RIGHT}", stroke="currentColor", stroke_opacity=0.18))
        marks.append(element("text", short(tick), x=LEFT - 7, y=f"{at + 4.5:.1f}", text_anchor="end"))
    for tick in [tick for tick in axes.x.ticks(6) if tick.is_integer() or not whole]:
        at = axes.place(tick, axes.y.low)[0]
        marks.append(element("path", d=f"M{at:.1f} {axes.bottom:g}v4", stroke="currentColor", stroke_opacity=0.5))
        name = short(tick)
        middle = min(at, WIDE - LETTER * len(name) / 2)  # or the last of them is cut off
        marks.append(element("text", name, x=f"{middle:.1f}", y=f"{axes.bottom + 19:g}", text_anchor="middle"))
    return Markup("").join(marks)


def _names(axes: _Axes, across: str, up: str) -> Markup:
    middle, bottom = (LEFT + RIGHT) / 2, f"{axes.bottom + 40:g}"
    return element("text", across, x=middle, y=bottom, text_anchor="middle", opacity=0.75) + element(
        "text", up, x=4, y=15, opacity=0.75
    )


def _line(line: Points, axes: _Axes, k: int, dashed: bool) -> Markup:
    places = [axes.place(x, y) for x, y, *_ in line]
    colour = COLOURS[k % len(COLOURS)]
    path = element(
        "path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places), fill="none", stroke=colour, stroke_width=2,
        stroke_dasharray="5 4" if dashed else None,
    )  # fmt: skip
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
    return (
        path
        + _bars(line, axes, colour)
        + element("path", d=dots, stroke=colour, stroke_width=5, stroke_linecap="round")
    )


def _bars(line: Points, axes: _Axes, colour: str) -> Markup:
    """From the low end of each interval to the high one."""
    ends = [(axes.place(p[0], p[2]), axes.place(p[0], p[3])) for p in line if len(p) == 4]
    bars = "".join(f"M{a:.1f} {low:.1f}V{high:.1f}" for (a, low), (_, high) in ends)
    return element("path", d=bars, stroke=colour, stroke_width=1.5, stroke_opacity=0.7) if bars else Markup("")


def _legend_places(names: Sequence[str]) -> tuple[list[tuple[float, float]], int]:
    """Where each name begins, and how many rows they take."""
    places, left, row = [], float(LEFT), 0
    for name in names:
        wide = 19 + LETTER * len(name)
        if left > LEFT and left + wide > RIGHT:
            left, row = float(LEFT), row + 1
        places.append((left, TOP + 5.0 + ROW * row))
        left += wide + 16
    return places, row + 1


def _legend(name: str, k: int, left: float, high: float) -> Markup:
    swatch = element("path", d=f"M{left:.0f} {high:g}h14", stroke=COLOURS[k % len(COLOURS)], stroke_width=4)
    return swatch + element("text", name, x=f"{left + 19:.0f}", y=high + 4.5)
