"""Which entries of a configuration widen a block, and along which axes of its weights; found by building models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from layerwright.core.depth_config import DepthConfig
from layerwright.core.errors import UserError

Axes = Mapping[str, int]
# Entries that may be left open, as then the width gives them: only those with such names are tried.
_OPEN = re.compile("inner|inter|ffn|mlp")


def widening(config: DepthConfig, k: int, factor: int = 2) -> dict[str, tuple[int, Axes]]:
    """Entries that make axes of block k's weights so many times longer: their value now, and which axes.

    Args:
        config: of the base.
        k: a block.
        factor: how many times.
    """
    before = config.base[k]
    found = {}
    for name, value in _sizes(config, before):
        made = config.with_settings({name: factor * value})
        axes = None if isinstance(made, str) else _longer(before, made[k], factor)
        if axes:
            found[name] = (value, axes)
    return found


def multiplied(config: DepthConfig, k: int, factor: int) -> tuple[dict[str, int], Axes]:
    """Settings with which every matrix of a block is so many times longer along one axis, and nothing else changes.

    Raises:
        UserError: there are none; the message names a weight that no entry widens, and entries that are refused.
    """
    before, entries = config.base[k], widening(config, k, factor)
    matrices = {name for name, shape in before.items() if isinstance(shape, tuple) and len(shape) > 1}
    for size in range(1, len(entries) + 1):
        for names in combinations(entries, size):
            settings = {name: factor * entries[name][0] for name in names}
            made = config.with_settings(settings)
            if isinstance(made, str):
                continue
            axes = _longer(before, made[k], factor)
            if axes and matrices <= axes.keys() and _only_counts(before, made[k], factor):
                return settings, axes
    covered = {name for _, axes in entries.values() for name in axes}
    missing = ", ".join(sorted(matrices - covered)) or "its matrices together"
    raise UserError(
        f"no entry of the configuration widens {missing}, so that one wider block cannot hold several"
        f"{_refusals(config, before, factor)}"
    )


def _refusals(config: DepthConfig, before: Mapping[str, Any], factor: int) -> str:
    """What the model's class says to entries that it cannot have so many times as large."""
    refused: dict[str, str] = {}
    for name, value in _sizes(config, before):
        if (reason := config.refusal({name: factor * value})) is not None:
            refused.setdefault(reason, f"{name} {factor * value}")
    return "".join(f"; {entry} is refused: {reason.rstrip('.')}" for reason, entry in refused.items())


def _sizes(config: DepthConfig, before: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    sizes = {n for shape in before.values() if isinstance(shape, tuple) for n in shape if n > 1}
    for name, value in config.beside().items():
        if name == config.place[-1] or name.endswith("token_id"):
            continue
        if type(value) is int and value >= 1:
            yield name, value
        elif value is None and _OPEN.search(name):
            yield from ((name, size) for size in sorted(sizes))


def _longer(before: Mapping[str, Any], after: Mapping[str, Any], factor: int) -> Axes | None:
    """The one axis of each weight that became longer; None where something else happened to weights."""
    axes = {}
    for name, old in before.items():
        new = after.get(name)
        if not isinstance(old, tuple) or new == old:
            continue
        if not isinstance(new, tuple) or len(new) != len(old):
            return None
        changed = [axis for axis, (a, b) in enumerate(zip(old, new)) if a != b]
        if len(changed) != 1 or new[changed[0]] != factor * old[changed[0]]:
            return None
        axes[name] = changed[0]
    return axes


def _only_counts(before: Mapping[str, Any], after: Mapping[str, Any], factor: int) -> bool:
    """Whether plain attributes are what they were, but for counts of what there is more of."""
    for name, old in before.items():
        new = after.get(name)
        if isinstance(old, tuple) or new == old:
            continue
        if type(old) is not int or new != factor * old:
            return False
    return True
