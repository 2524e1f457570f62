"""The page of a training run: loss, gradient and learning rate over its steps, and what held-out text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from layerwright.report import _asset, _environment, _palettes, chart
from layerwright.report.chart import Series
from layerwright.report.pictures import Panel
from layerwright.report.scale import fit, text, triple

MOST_PLACES = 200
_SHOWN = (
    # Heading, unit, and the columns that share an axis with what they are called.
    ("Loss", "nat/token", {"loss": "training text", "validation_loss": "held-out text"}),
    ("Distance to the teacher", "nat/token", {"distillation": "training text"}),
    ("Length of the gradient, before it is clipped at 1", "nat/token", {"gradient_norm": "gradient"}),
    ("Learning rate", "", {"lr": "learning rate"}),
)
Row = Mapping[str, float | None]


def page(document: Mapping[str, Any]) -> str:
    """A complete HTML page: no network, no outside file, no script.

    Args:
        document: what `training.json` holds (`Training.to_dict()`).

    Example:
        >>> "No step" in page({"model": {"name": "tiny"}, "curve": {"columns": [], "rows": []}})
        True
    """
    curve = document.get("curve") or {}
    rows = [dict(zip(curve.get("columns") or [], row, strict=False)) for row in curve.get("rows") or []]
    return _environment().get_template("curve.html.j2").render(
        model=document.get("model") or {},
        facts=_facts(document, rows),
        panels=list(_panels(rows)),
        thinned=-(-len(rows[1:]) // MOST_PLACES),
        measured=[row for row in rows if row.get("validation_loss") is not None],
        settings={name: x for name, x in (document.get("settings") or {}).items() if x is not None},
        notes=document.get("notes") or [],
        style=_asset("style.css") + _asset("chart.css") + _palettes(),
    )  # fmt: skip


def _facts(document: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the top of the page says in numbers."""
    held, data = document.get("held_out") or {}, document.get("data") or {}
    if not rows or not held:
        return []
    change, low, high = triple(held["change"], held.get("low"), held.get("high"))
    last = rows[-1]
    facts = [
        ("Held-out loss before", f"{text(held['before'])} nat/token"),
        ("Held-out loss after", f"{text(held['after'])} nat/token"),
        ("Change", f"{change} nat/token"),
        *([("95 % interval of the change", f"{low} to {high}")] if low else []),
        ("Held-out documents", text(data.get("held_out_documents"))),
        ("Steps", text(last["step"])),
        ("Tokens trained on", text(last["tokens"])),
        ("Time", f"{text(last['seconds'])} s"),
        ("Text", str(data.get("source", ""))),
    ]
    teacher = (document.get("model") or {}).get("teacher")
    return [*facts, *([("Teacher", str(teacher))] if teacher else [])]


def _panels(rows: Sequence[Row]) -> list[Panel]:
    places, windows = _windows(rows)
    panels = []
    for heading, unit, columns in _SHOWN:
        series = [Series(words, [_mean(window, name) for window in windows]) for name, words in columns.items()]
        series = [one for one in series if any(one.rows)]
        if series:
            scale = fit((row["value"] for one in series for row in one.rows if row), zero=heading != "Loss")
            view: Markup = chart.lines(places, series, scale, heading, ("step", "step"))
            legend = [one.name for one in series] if len(columns) > 1 else []
            panels.append(Panel([("", view)], heading, unit, scale.note, legend))
    return panels


def _windows(rows: Sequence[Row]) -> tuple[list[str], list[Sequence[Row]]]:
    """The start, then steps in windows of one length, as many as a picture can show, each named by its last step."""
    stride = max(1, -(-len(rows[1:]) // MOST_PLACES))
    windows = [rows[:1], *(rows[k : k + stride] for k in range(1, len(rows), stride))]
    return [text(window[-1]["step"]) for window in windows if window], [window for window in windows if window]


def _mean(window: Sequence[Row], name: str) -> dict[str, float] | None:
    """The mean over a window; None where nothing was measured in it."""
    known = [value for row in window if (value := row.get(name)) is not None]
    return {"value": sum(known) / len(known)} if known else None
