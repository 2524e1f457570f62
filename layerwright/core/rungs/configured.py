"""Entries of a configuration that still describe the old tower."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from layerwright.core.rungs.case import Case

_DEPTHS = re.compile(r"(n|num|encoder|decoder)_(hidden_|decoder_|encoder_)?(layers?|blocks?)")
_NAMES = re.compile("layer|block|pattern")


def configured(case: Case) -> str | None:
    """An entry of the configuration that still describes the old tower."""
    configs = [getattr(model, "config", None) for model in (case.before, case.after)]
    if not all(hasattr(config, "to_dict") for config in configs):
        return None
    old, new = (config.to_dict() for config in configs)  # type: ignore[union-attr]
    return _wrong_depth(case, old, new) or _wrong_lists(case, old, new)


def _wrong_depth(case: Case, old: Any, new: Any) -> str | None:
    """Of the entries that were the depth, one must be it still."""
    entries = [(name, _at(new, name)) for name, value in _walk(old) if _is_depth(name, value, case.base.depth)]
    if entries and all(value != case.new.depth for _, value in entries):
        name, value = entries[0]
        return f"the configuration's {'.'.join(name)} is {value}, and {case.new.depth} blocks run"
    return None


def _is_depth(name: tuple[str, ...], value: Any, depth: int) -> bool:
    return type(value) is int and value == depth and _DEPTHS.fullmatch(name[-1]) is not None


def _wrong_lists(case: Case, old: Any, new: Any) -> str | None:
    """Entries with one item a block must have one for each, that of its source."""
    for name, value in _walk(old):
        now = _at(new, name)
        if not _by_block(name[-1], value, case.base.depth) or not isinstance(now, (list, str)):
            continue
        text = ".".join(name)
        if len(now) != case.new.depth:
            return f"the configuration's {text} has {len(now)} items, and {case.new.depth} blocks run"
        for j, k in enumerate(case.order or ()):
            if now[j] != value[k]:
                return (
                    f"the configuration's {text} says {now[j]!r} of block {j}; its source, block {k}, is {value[k]!r}"
                )
    return None


def _by_block(name: str, value: Any, depth: int) -> bool:
    """Whether an entry has an item for each block; numbers that only rise are a list of blocks."""
    if not isinstance(value, (list, str)) or len(value) != depth or not _NAMES.search(name):
        return False
    numbers = [item for item in value if type(item) is int]
    return len(numbers) < depth or any(a >= b for a, b in pairwise(numbers))


def _walk(entries: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in entries.items() if isinstance(entries, Mapping) else ():
        yield (*place, str(key)), value
        yield from _walk(value, (*place, str(key)))


def _at(entries: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        entries = entries.get(key) if isinstance(entries, Mapping) else None
    return entries
