"""How plans name blocks: numbers, and slices as in Python."""

from __future__ import annotations

import re
from typing import Any

from layerwright.core.errors import UserError

_SLICE = re.compile(r"(-?\d*):(-?\d*)")
_FORM = "a list of blocks [4, 5] or slices '0:21, 29:', counted from 0, the end of a slice not included"


def blocks_of(value: Any, depth: int) -> list[int]:
    """The places that a plan names, in its order.

    Args:
        value: a number, a list of numbers and slices, or text such as `0:21, 29:`.
        depth: how many blocks there are.

    Raises:
        UserError: it names a block that is not there, or nothing at all.

    Example:
        >>> blocks_of("0:2, 5:", 8), blocks_of([3, 3, "-2:"], 8)
        ([0, 1, 5, 6, 7], [3, 3, 6, 7])
    """
    items = value if isinstance(value, list) else str(value).split(",") if isinstance(value, (int, str)) else [None]
    places = [place for item in items for place in _places(item, depth)]
    if not places:
        raise UserError(f"got {value!r}, which names no block; expected {_FORM}")
    return places


def once(value: Any, depth: int) -> list[int]:
    """The same, where a block may be named only once."""
    places = blocks_of(value, depth)
    if doubled := [place for place in places if places.count(place) > 1]:
        raise UserError(f"got {value!r}, which names block {doubled[0]} twice; expected each block once")
    return places


def stretch(value: Any, depth: int) -> range:
    """The same, where the blocks must follow one another."""
    places = blocks_of(value, depth)
    found = range(places[0], places[-1] + 1)
    if places != list(found):
        raise UserError(f"got {value!r}; expected blocks that follow one another, such as '4:8'")
    return found


def whole(value: Any, what: str, least: int = 1) -> int:
    """A whole number of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"got {what} {value!r}; expected a whole number of at least {least}")
    return value


def number(value: Any, what: str, above: float = 0.0) -> float:
    """A number larger than so much."""
    found = _number(value[:-1]) if isinstance(value, str) and value.endswith("x") else value
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not found > above or found == float("inf"):
        raise UserError(f"got {what} {value!r}; expected a number larger than {above:g}")
    return float(found)


def one_of(value: Any, what: str, choices: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in choices:
        raise UserError(f"got {what} {value!r}; expected {' or '.join(choices)}")
    return str(value)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _places(item: Any, depth: int) -> list[int]:
    text = str(item).strip()
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise UserError(f"got {item!r}; expected {_FORM}")
    if found := _SLICE.fullmatch(text):
        return list(range(*_ends(text, found[1], found[2], depth)))
    if not text.isdecimal():
        raise UserError(f"got {text!r}; expected {_FORM}")
    if int(text) >= depth:
        raise UserError(f"got block {text}; there are {depth}, 0 to {depth - 1}")
    return [int(text)]


def _ends(text: str, first: str, last: str, depth: int) -> tuple[int, int]:
    start, end = int(first or 0), int(last) if last else depth
    start, end = (place + depth if place < 0 else place for place in (start, end))
    if not 0 <= start < depth or not 0 <= end <= depth:
        raise UserError(f"slice {text} goes past the {depth} blocks; the end is not included, all are 0:{depth}")
    if start >= end:
        one = f"{start}:{start + 1}"
        raise UserError(f"slice {text} holds no block; the end is not included, so that block {start} is {one}")
    return start, end
