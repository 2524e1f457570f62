"""One table of a survey document, as the pictures read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Row = Mapping[str, Any]

STATISTICS = ("value", "low", "high", "std", "p95", "max", "tokens", "nonfinite")


@dataclass(frozen=True)
class Sheet:
    """A table of `survey.json` in long form: index columns, then the numbers.

    Index columns that hold numbers are `axes` (block, point, gap, …), those that hold words are `kinds` (part, matrix,
    quantity, …). A picture is chosen from these alone, so that a measure nobody here has heard of gets one too.
    """

    name: str
    spec: Mapping[str, Any]

    @property
    def file(self) -> str:
        """Where all its rows are, beside the page."""
        return str(self.spec.get("file") or f"tables/{self.name}.csv")

    @cached_property
    def columns(self) -> list[str]:
        """All columns in their order."""
        return [str(c) for c in self.spec.get("columns") or []]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows by column; numbers that are not finite are None, for undefined."""
        return [
            {c: _defined(v, c) for c, v in zip(self.columns, row, strict=False)} for row in self.spec.get("rows") or []
        ]

    @cached_property
    def index(self) -> list[str]:
        """The columns that say what a row is about."""
        if self.spec.get("index") is not None:
            return [c for c in self.spec["index"] if c in self.columns]
        before = self.columns[: self.columns.index("value")] if "value" in self.columns else []
        return [c for c in before if c not in STATISTICS]

    @cached_property
    def axes(self) -> list[str]:
        """Index columns of numbers, `block` first: it is the horizontal axis wherever there is one."""
        axes = [c for c in self.index if self.rows and all(isinstance(r[c], (int, float)) for r in self.rows)]
        return sorted(axes, key=lambda c: c != "block")

    @cached_property
    def kinds(self) -> list[str]:
        """Index columns of words."""
        return [c for c in self.index if c not in self.axes]

    def unit(self, quantity: str | None = None) -> str:
        """The unit of the table or of one of its quantities."""
        unit = self.spec.get("unit") or "1"
        return str(unit.get(quantity, "1") if isinstance(unit, Mapping) else unit)

    @property
    def units(self) -> str:
        """All units in words, for the definition."""
        unit = self.spec.get("unit") or "1"
        if isinstance(unit, Mapping):
            return ", ".join(f"{spoken(q)}: {pure(str(u))}" for q, u in unit.items())
        return pure(str(unit))

    @property
    def range(self) -> str:
        """The range in words; an end that is open is said to be unbounded."""
        low, high = (self.spec.get("range") or [None, None])[:2]
        if low is None and high is None:
            return "any number"
        return f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"

    @property
    def quantities(self) -> list[str]:
        """The quantities of the table, in order of appearance; empty where it has just one."""
        return self.values_of("quantity") if "quantity" in self.kinds else []

    def values_of(self, column: str) -> list[Any]:
        """The distinct values of an index column: numbers sorted, words as they appear, whole blocks before parts."""
        found = list(dict.fromkeys(r[column] for r in self.rows))
        return sorted(found) if column in self.axes else sorted(found, key=lambda v: v != "block")

    def where(self, **fixed: Any) -> Iterator[Row]:
        """The rows with these values."""
        return (r for r in self.rows if all(r[c] == v for c, v in fixed.items()))

    def by(self, axis: str, **fixed: Any) -> dict[Any, Row]:
        """The rows with these values by the value of one more column."""
        return {r[axis]: r for r in self.where(**fixed)} if axis in self.columns else {}

    @property
    def undefined(self) -> int:
        """How many rows have no defined value."""
        return sum("value" in r and r["value"] is None for r in self.rows)

    @property
    def nonfinite(self) -> list[Row]:
        """Rows in which some tokens gave a number that is not finite."""
        return [r for r in self.rows if r.get("nonfinite")]

    @property
    def tokens(self) -> str:
        """How many tokens a row rests on."""
        counts = sorted({int(r["tokens"]) for r in self.rows if r.get("tokens") is not None})
        if not counts:
            return ""
        return f"{counts[0]:,} a row" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} a row"


def sheets(document: Mapping[str, Any]) -> dict[str, Sheet]:
    """All tables of a survey document by name."""
    return {name: Sheet(name, spec) for name, spec in (document.get("tables") or {}).items()}


def spoken(name: Any) -> str:
    """A name from code in words.

    Example:
        >>> spoken("top5_overlap"), spoken(3)
        ('top5 overlap', '3')
    """
    return str(name).replace("_", " ")


def pure(unit: str) -> str:
    """A unit in words: the unit 1 is said to be a pure number."""
    return "1 (a pure number)" if unit == "1" else unit


def _defined(value: Any, column: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    counted = column in ("tokens", "nonfinite") or column not in STATISTICS
    return int(value) if counted and isinstance(value, float) and value.is_integer() else value
