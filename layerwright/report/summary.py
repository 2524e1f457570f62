"""The words at the top of the page: what was surveyed, how the self-tests went, what was found, what to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerwright.report.scale import text
from layerwright.report.sheet import Sheet

TONES = {"act": ("▲", "Act"), "watch": ("●", "Watch"), "protect": ("■", "Protect"), "good": ("✓", "Good")}
MOST_PLACES = 6


@dataclass(frozen=True)
class Finding:
    """A finding as the page shows it; `number` counts from 1 and names it in the picture of the tower."""

    number: int
    tone: str
    title: str
    blocks: tuple[int, ...]
    evidence: tuple[str, ...]
    advice: str
    plan: str

    @property
    def symbol(self) -> str:
        """A mark of the tone that does not rest on colour."""
        return TONES[self.tone][0]

    @property
    def word(self) -> str:
        """The tone in one word."""
        return TONES[self.tone][1]

    @property
    def where(self) -> str:
        """The blocks in words."""
        return f"block{'s' if len(self.blocks) > 1 else ''} {ranges(self.blocks)}" if self.blocks else ""


def findings(document: Mapping[str, Any]) -> list[Finding]:
    """The findings of a survey document."""
    return [
        Finding(
            k,
            f.get("tone") if f.get("tone") in TONES else "watch",
            str(f.get("title") or f.get("rule") or ""),
            tuple(f.get("blocks") or ()),
            tuple(f.get("evidence") or ()),
            str(f.get("advice") or ""),
            str(f.get("plan") or "").strip(),
        )
        for k, f in enumerate(document.get("findings") or [], start=1)
    ]


def facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was surveyed and how, as label and value; what is not known is left out."""
    model, data, settings = (document.get(k) or {} for k in ("model", "data", "settings"))
    blocks = _number(model.get("depth"))
    if model.get("unique_depth") not in (None, model.get("depth")):
        blocks += f" ({_number(model['unique_depth'])} distinct)"
    lines = [
        ("Class", model.get("class")),
        ("Blocks", " · ".join(filter(None, (blocks, model.get("blocks"))))),
        ("Width", _number(model.get("width"))),
        ("Parameters", _number(model.get("parameters"))),
        ("Computed in", ", ".join(str(v) for v in (model.get("dtype"), model.get("device")) if v)),
        ("Data", data.get("source")),
        ("Measured on", _measured_on(data)),
        ("Tier", settings.get("tier")),
        ("Seed", _number(settings.get("seed"))),
        ("Time", f"{text(settings['seconds'])} s" if settings.get("seconds") is not None else None),
        ("Layerwright", settings.get("layerwright") or document.get("layerwright")),
        ("Other towers", _other_towers(model)),
    ]
    return [(label, str(value)) for label, value in lines if value]


def notes(document: Mapping[str, Any], tables: Mapping[str, Sheet]) -> list[str]:
    """The survey's own notes, then the tables in which tokens were not finite or numbers are undefined."""
    out = [str(n) for n in document.get("notes") or []]
    nonfinite = [f"{name} ({_places(sheet)})" for name, sheet in tables.items() if sheet.nonfinite]
    if nonfinite:
        out.append(f"Tokens whose number is not finite are left out of {'; '.join(nonfinite)}.")
    undefined = [f"{name} ({sheet.undefined})" for name, sheet in tables.items() if sheet.undefined]
    if undefined:
        out.append(f"Undefined numbers are drawn hatched or left out, never as zero: {', '.join(undefined)}.")
    return out


def _places(sheet: Sheet) -> str:
    """Where the tokens that are not finite were seen, e.g. `block 1 attention, block 1 mlp and 4 more`."""
    rows = sheet.nonfinite
    places = [" ".join(f"{c} {r[c]}" if c in sheet.axes else str(r[c]) for c in sheet.index) for r in rows]
    more = f" and {len(rows) - MOST_PLACES} more" if len(rows) > MOST_PLACES else ""
    return (", ".join(filter(None, places[:MOST_PLACES])) or "the whole model") + more


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with neighbours joined.

    Example:
        >>> ranges([7, 8, 9, 14])
        '7–9, 14'
    """
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def _measured_on(data: Mapping[str, Any]) -> str:
    parts = [f"{_number(data[k])} {k}" for k in ("tokens", "sequences") if data.get(k) is not None]
    if data.get("length") is not None:
        parts.append(f"length {_number(data['length'])}")
    return ", ".join(parts)


def _other_towers(model: Mapping[str, Any]) -> str:
    towers: Sequence[Mapping[str, Any]] = model.get("towers") or []
    others = [t for t in towers if t.get("path") != model.get("blocks")]
    return "; ".join(f"{t.get('path')} ({t.get('depth')} × {t.get('block_class')})" for t in others)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
