"""From numbers to places on an axis or a colour ramp, and from numbers to text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal

Kind = Literal["linear", "log", "asinh"]

# A linear axis whose largest value is this many times the middle one shows nothing but that value.
SKEWED = 8.0


@dataclass(frozen=True)
class Scale:
    """A monotone map of [low, high] to [0, 1].

    `asinh` is linear below `knee` and logarithmic above it, so that zero and negative numbers have a place too.

    Example:
        >>> Scale(1.0, 100.0, "log").at(10.0)
        0.5
        >>> Scale(0.0, 4.0).ticks()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """

    low: float
    high: float
    kind: Kind = "linear"
    knee: float = 1.0

    def at(self, value: float) -> float:
        """Where a value lies, held inside [0, 1]."""
        low, high = self._bend(self.low), self._bend(self.high)
        bent = self._bend(max(value, self.low)) if self.kind == "log" else self._bend(value)
        return min(max((bent - low) / (high - low), 0.0), 1.0)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers inside the scale, at most about `most` of them."""
        if self.kind == "linear":
            return _round_steps(self.low, self.high, most)
        marks = _decades(self.low if self.kind == "log" else self.knee, max(abs(self.low), self.high), (1, 2, 5))
        if self.kind == "asinh":
            marks = sorted({0.0, *marks, *(-m for m in marks)})
        inside = [m for m in marks if self.low * (1 - 1e-9) <= m <= self.high * (1 + 1e-9) or m == self.low]
        marks = _spread([m for m in inside if m >= self.low], self, most)
        # Where a logarithmic axis is so narrow that hardly a number of one digit lies on it, even steps will do.
        return _round_steps(self.low, self.high, most) if self.kind == "log" and len(marks) < 2 else marks

    @property
    def note(self) -> str:
        """What a reader must know about the scale; empty for a linear one."""
        if self.kind == "log":
            return "logarithmic axis"
        return f"linear up to {short(self.knee)}, logarithmic above" if self.kind == "asinh" else ""

    def _bend(self, value: float) -> float:
        if self.kind == "log":
            return math.log(value)
        return math.asinh(value / self.knee) if self.kind == "asinh" else value


def fit(values: Iterable[float | None], kind: Kind | None = None, zero: bool = True, symmetric: bool = False) -> Scale:
    """The scale that shows these values.

    Args:
        values: what has to fit; None is left out.
        kind: forced kind; else linear, or asinh where a few values dwarf the others.
        zero: whether zero has to be on a linear scale.
        symmetric: whether zero has to be in the middle.
    """
    known = [v for v in values if v is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    if kind == "log" and low > 0:
        return Scale(low / 1.15, high * 1.15, "log")
    size = [abs(v) for v in known if v != 0] or [1.0]
    middle = median(size)
    if kind is None:
        kind = "asinh" if max(size) > SKEWED * middle else "linear"
    if symmetric:
        low, high = -max(size), max(size)
    elif zero or kind == "asinh":
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(size):
        high = low + (0.1 * abs(low) or 1.0)
    return Scale(low, high, "asinh" if kind == "asinh" else "linear", _leading_digit(middle))


def text(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, thousands separated, `undefined` where there is none.

    Example:
        >>> text(0.123456), text(-12.0), text(51234), text(0.00001234), text(None)
        ('0.123', '−12.0', '51,234', '1.23e−5', 'undefined')
    """
    if value is None:
        return "undefined"
    if value == 0:
        return "0"
    size = abs(value)
    if isinstance(value, int) and size < 1e7:
        out = f"{value:,}"
    elif size >= 1e7 or size < 1e-3:
        out = "e".join(_scientific(value, digits))
    else:
        out = f"{value:,.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}"
    return out.replace("-", "−")


def triple(value: float | None, low: float | None, high: float | None) -> tuple[str, str, str]:
    """A number and its interval, all to the same decimals; whole numbers without any; '' for an interval not known.

    Example:
        >>> triple(4.4, 4.0, 4.812), triple(7.0, 6.0, 8.0)
        (('4.40', '4.00', '4.81'), ('7', '6', '8'))
    """
    known = [v for v in (value, low, high) if v is not None]
    if value is None or low is None or high is None:
        whole = value is not None and float(value).is_integer() and abs(value) < 1e7
        return text(int(value) if whole and value is not None else value), "", ""
    if all(float(v).is_integer() for v in known):
        return text(int(value)), text(int(low)), text(int(high))
    size = max(abs(v) for v in known)
    if not 1e-3 <= size < 1e7:
        return text(value), text(low), text(high)
    decimals = max(2 - math.floor(math.log10(size)), 0)
    return tuple(f"{v:,.{decimals}f}".replace("-", "−") for v in known)  # type: ignore[return-value]


def short(value: float) -> str:
    """A number for an axis: no trailing zeros.

    Example:
        >>> short(0.50), short(2000.0), short(0.00002), short(0.00034)
        ('0.5', '2,000', '2e−5', '3.4e−4')
    """
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = _scientific(value, 3)
        return f"{float(mantissa):g}e{exponent}".replace("-", "−")
    return f"{value:,.10g}".replace("-", "−")


def _scientific(value: float, digits: int) -> tuple[str, str]:
    """Mantissa and power of ten."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return mantissa, str(int(exponent))


def _round_steps(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def _decades(low: float, high: float, multiples: tuple[int, ...]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [float(f"{m}e{power}") for power in range(first, last + 1) for m in multiples]


def _leading_digit(value: float) -> float:
    """The value cut to one digit, so that the knee of a scale can be said in words."""
    return float(f"{value:.0e}")


def _spread(marks: list[float], scale: Scale, most: int) -> list[float]:
    """Drop marks that would crowd each other; zero and round powers of ten stay before others."""
    kept: list[float] = []
    for mark in sorted(marks, key=lambda m: (m != 0, f"{abs(m):e}"[0] != "1", abs(m))):
        if all(abs(scale.at(mark) - scale.at(k)) >= 0.7 / most for k in kept):
            kept.append(mark)
    return sorted(kept)
