"""Two surveys side by side: for each measure both curves, and their difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerwright.report.looks import LOOKS, Look
from layerwright.report.pictures import Card, card
from layerwright.report.sheet import Sheet, spoken

_CAPTION = "This survey minus the other. Where the band leaves out zero, the two differ."
_WITHOUT = "This survey minus the other."


def beside(document: Mapping[str, Any]) -> tuple[str, list[Card]]:
    """What the other survey was of, and a card for each measure that both have; no cards where there is no other."""
    other = document.get("against") or {}
    tables = other.get("tables") or {}
    names = _names(document, other)
    known = list(LOOKS)
    in_order = sorted(tables, key=lambda name: known.index(name) if name in LOOKS else len(known))
    return names[1], [_card(name, tables[name], names) for name in in_order if tables[name].get("rows")]


def _names(document: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """What tells the two surveys apart: their models, else their data."""
    models = [str((one.get("model") or {}).get("name", "")) for one in (document, other)]
    data = [str((one.get("data") or {}).get("source", "")) for one in (document, other)]
    mine, its = models if models[0] != models[1] else data
    return (mine, its) if mine != its else (f"{mine}, this survey", f"{its}, the other")


def _card(name: str, spec: Mapping[str, Any], names: tuple[str, str]) -> Card:
    sheet = _sheet(name, spec, "difference")
    look = LOOKS.get(name, Look())
    title = look.title or str(spec.get("title") or spoken(name).capitalize())
    made = card(sheet, {})
    both = card(_both(name, spec, names), {}) if len(sheet.axes) == 1 else None
    # What has more lines than can be told apart says nothing when it has twice as many.
    drawn = [p for p in (both.panels if both else []) if p.legend]
    panels = [replace(p, heading=_heading(p.heading, "both")) for p in drawn]
    panels += [replace(p, heading=_heading(p.heading, "difference")) for p in made.panels]
    caption = _CAPTION if "low" in sheet.columns else _WITHOUT
    return replace(made, look=Look("beside", caption=caption, wide=True), title=title, panels=panels)


def _heading(quantity: str, what: str) -> str:
    return f"{quantity}: {what}" if quantity else what


def _sheet(name: str, spec: Mapping[str, Any], column: str) -> Sheet:
    """The table with one of its columns as the value."""
    columns = ["value" if c == column else "this survey" if c == "value" else c for c in spec["columns"]]
    about = {k: v for k, v in spec.items() if k not in ("range", "definition", "formula")}
    return Sheet(f"comparison-{name}", about | {"columns": columns, "file": f"comparison/{name}.csv"})


def _both(name: str, spec: Mapping[str, Any], names: tuple[str, str]) -> Sheet:
    """Both values, told apart by a column of words."""
    sheet = _sheet(name, spec, "difference")
    index = [c for c in sheet.index if c in sheet.columns]
    rows = [
        [*(row[c] for c in index), who, row[column]]
        for who, column in zip(names, ("this survey", "against"))
        for row in sheet.rows
    ]
    columns = [*index, "survey", "value"]
    return Sheet(sheet.name, {**sheet.spec, "columns": columns, "rows": rows, "index": columns[:-1]})
