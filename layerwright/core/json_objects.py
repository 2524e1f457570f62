"""JSON read strictly: an object, no key twice, and every fault a plain `ValueError`."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

from layerwright.core.errors import UserError

_REPR = reprlib.Repr()
_REPR.maxstring = 120


def shown(value: object) -> str:
    r"""A value from a file as it may stand in a message: on one line, and short.

    Example:
        >>> shown("a\nb"), len(shown("x" * 10**6))
        ("'a\\nb'", 120)
    """
    return _REPR.repr(value)


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that a text holds.

    Raises:
        ValueError: it is not JSON in UTF-8, holds no object, or an object in it has a key twice.
    """
    try:
        content = json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; expected a JSON object")
    return content


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, or is not valid.
    """
    try:
        return parse_object(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}; get it again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands there twice")
    return content
