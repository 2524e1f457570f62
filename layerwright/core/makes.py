"""What blocks of one class have in common and what tells them apart: shapes of their weights, and plain settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

Make = Mapping[str, Any]
_PLAIN = (bool, int, float, str, type(None))


def makes_of(blocks: Sequence[nn.Module], counting: Collection[str] | None = None) -> list[dict[str, Any]]:
    """For each block the classes of its modules, the shapes of its weights, and their plain attributes.

    Attributes that only count the blocks (`layer_idx`) are left out: they say where a block stands, not what it is.
    So are those of dropout, which does nothing in a trained model.

    Args:
        blocks: of a tower.
        counting: attributes that count; found in these blocks unless given, for which there must be two.

    Example:
        >>> makes_of([nn.Linear(2, 3), nn.Linear(2, 4)])[1]["weight"]
        (4, 2)
    """
    counting = counters(blocks) if counting is None else counting
    return [{name: value for name, value in _all(block) if name not in counting} for block in blocks]


def counters(blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Attributes (as `self_attn.layer_idx`) that number the blocks, and the number of the first block.

    Example:
        >>> blocks = [nn.Identity() for _ in range(3)]
        >>> for k, block in enumerate(blocks):
        ...     block.layer_number = k + 1
        >>> counters(blocks)
        {'layer_number': 1}
    """
    if len(blocks) < 2:
        return {}
    values = [dict(_attributes(block)) for block in blocks]
    first = {name: value for name, value in values[0].items() if type(value) is int}
    return {
        name: start
        for name, start in first.items()
        if all(type(v.get(name)) is int and v[name] == start + k for k, v in enumerate(values))
    }


def difference(made: Make, wanted: Make) -> str | None:
    """The first thing in which a block is not what it should be, in words; None where there is none."""
    for name in [*wanted, *made]:
        if made.get(name) != wanted.get(name) or (name in made) != (name in wanted):
            return f"{name} would be {made.get(name, 'absent')} and was {wanted.get(name, 'absent')}"
    return None


def _all(block: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in block.named_modules():
        yield f"{path}()", type(module).__name__
    for tensors in (block.named_parameters(), block.named_buffers()):
        for name, tensor in tensors:
            yield name, tuple(tensor.shape)
    yield from _attributes(block)


def _attributes(block: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in block.named_modules():
        if "Drop" in type(module).__name__:
            continue
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training" and "drop" not in name and isinstance(value, _PLAIN):
                yield prefix + name, value
