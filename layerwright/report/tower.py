"""The picture of the tower: each block as wide as it changes the stream, coloured by how much the loss needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from layerwright.report.chart import colour_key
from layerwright.report.palette import step
from layerwright.report.scale import Scale, fit, text
from layerwright.report.sheet import Row, Sheet
from layerwright.report.summary import Finding

# The narrowest floor, so that a block which does next to nothing can still be seen.
NARROWEST = 0.12

Lane = dict[int, Finding]


@dataclass(frozen=True)
class Reading:
    """One number for each block, with what it is called and its scale."""

    title: str
    unit: str
    rows: Mapping[int, Row]
    scale: Scale
    signed: bool = False

    def value(self, block: int) -> float | None:
        """The number of a block, None where there is none."""
        row = self.rows.get(block)
        return None if row is None else row["value"]

    def said(self, block: int) -> str:
        """The number in words, with a plus before a rise."""
        value = self.value(block)
        return ("+" if self.signed and value is not None and value > 0 else "") + text(value)

    def colour(self, block: int) -> str:
        """The colour class of a block."""
        value = self.value(block)
        return "undefined" if value is None else f"s{step(self.scale.at(value))}"

    def width(self, block: int) -> str:
        """How wide a block is drawn; half of the full width where the number is undefined."""
        value = self.value(block)
        return f"{0.5 if value is None else NARROWEST + (1 - NARROWEST) * self.scale.at(value):.1%}"

    def interval(self, block: int) -> str:
        """The interval of a block's number; empty where there is none."""
        row = self.rows.get(block) or {}
        known = row.get("low") is not None and row.get("high") is not None
        return f"{text(row['low'])} to {text(row['high'])}" if known else ""


@dataclass(frozen=True)
class Floor:
    """One block as drawn: `lanes` has a finding, or None, for each column of marks."""

    block: int
    module: str
    colour: str
    width: str
    effect: str
    interval: str
    change: str
    lanes: list[Finding | None]


@dataclass(frozen=True)
class Tower:
    """The floors from the top down, and what colour and width mean."""

    floors: list[Floor]
    effect: Reading | None
    change: Reading | None
    key: Markup
    marked: list[Finding]

    @property
    def size(self) -> str:
        """How high the floors are drawn: the deeper the tower, the lower each floor."""
        return "tall" if len(self.floors) > 40 else "middle" if len(self.floors) > 18 else "short"


def tower(model: Mapping[str, Any], tables: Mapping[str, Sheet], findings: Sequence[Finding]) -> Tower:
    """Build the picture from whatever was measured: skips where there are any, else influence and contribution."""
    readings = _readings(tables)
    effect = next((readings[n] for n in ("skip", "influence", "contribution") if n in readings), None)
    change = next((readings[n] for n in ("contribution", "influence") if n in readings), effect)
    measured = [b for r in readings.values() for b in r.rows]
    depth = int(model.get("depth") or max(measured, default=-1) + 1)
    order = model.get("order") or range(depth)
    marked = [f for f in findings if f.blocks]
    lanes = _lanes(marked)
    floors = [_floor(b, order, effect, change, lanes) for b in reversed(range(depth))]
    key = colour_key(effect.scale, "s") if effect else Markup("")
    return Tower(floors, effect, None if change is effect else change, key, marked)


def _lanes(marked: Sequence[Finding]) -> list[Lane]:
    """Columns of marks, block to finding: findings that share no block share a column."""
    lanes: list[Lane] = []
    for finding in marked:
        lane = next((free for free in lanes if not free.keys() & set(finding.blocks)), None)
        if lane is None:
            lanes.append(lane := {})
        lane.update(dict.fromkeys(finding.blocks, finding))
    return lanes


def _readings(tables: Mapping[str, Sheet]) -> dict[str, Reading]:
    sources: tuple[tuple[str, str, str, dict[str, str], str], ...] = (
        ("skip", "skip_output", "source", {"quantity": "loss_increase"}, "rise of the loss when skipped"),
        ("influence", "block_influence", "block", {}, "turn of the stream"),
        ("contribution", "residual_contribution", "block", {"part": "block"}, "change of the stream"),
    )
    found = {}
    for name, table, axis, fixed, title in sources:
        sheet = tables.get(table)
        rows = sheet.by(axis, **fixed) if sheet and {axis, "value", *fixed} <= set(sheet.columns) else {}
        if sheet and rows:
            unit, scale = sheet.unit(fixed.get("quantity")), fit(r["value"] for r in rows.values())
            found[name] = Reading(title, "" if unit == "1" else unit, rows, scale, signed=name == "skip")
    return found


def _floor(
    block: int, order: Sequence[int], effect: Reading | None, change: Reading | None, lanes: Sequence[Lane]
) -> Floor:
    module = order[block] if block < len(order) else block
    return Floor(
        block,
        "" if module == block else f"= {module}",
        effect.colour(block) if effect else "plain",
        change.width(block) if change else "50%",
        effect.said(block) if effect else "",
        effect.interval(block) if effect else "",
        change.said(block) if change and change is not effect else "",
        [lane.get(block) for lane in lanes],
    )
