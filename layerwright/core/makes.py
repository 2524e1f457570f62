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
    So are those of dropout, which does nothing in a trained model. Of a table by blocks' numbers, a block is what it
    says of its own number.

    Args:
        blocks: of a tower.
        counting: attributes that count; found in these blocks unless given, for which there must be two.

    Example:
        >>> makes_of([nn.Linear(2, 3), nn.Linear(2, 4)])[1]["weight"]
        (4, 2)
    """
    counting = counters(blocks) if counting is None else counting
    return [{name: value for name, value in _all(block, k) if name not in counting} for k, block in enumerate(blocks)]


def counters(blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Attributes (as `self_attn.layer_idx`) that number the blocks, and the number of the first block.

    In a tower of several kinds of blocks the number may stand at another path in each kind: those of one name (here
    `layer_idx`) number the blocks where together they number all of them.

    Example:
        >>> blocks = [nn.Identity() for _ in range(3)]
        >>> for k, block in enumerate(blocks):
        ...     block.layer_number = k + 1
        >>> counters(blocks)
        {'layer_number': 1}
        >>> mixed = [nn.Sequential(), nn.Module(), nn.Sequential()]
        >>> for k, block in enumerate(mixed):
        ...     block.add_module("attention" if k == 1 else "recurrence", nn.Identity())
        ...     next(block.children()).layer_idx = k
        >>> counters(mixed)
        {'recurrence.layer_idx': 0, 'attention.layer_idx': 0}
    """
    if len(blocks) < 2:
        return {}
    starts: dict[str, set[int]] = {}
    where: dict[str, set[int]] = {}
    for k, block in enumerate(blocks):
        for name, value in _attributes(block):
            if type(value) is int:
                starts.setdefault(name, set()).add(value - k)
                where.setdefault(name, set()).add(k)
    steady = {name: next(iter(found)) for name, found in starts.items() if len(found) == 1}
    numbered: dict[tuple[str, int], set[int]] = {}
    for name, start in steady.items():
        numbered.setdefault((_own(name), start), set()).update(where[name])
    return {name: start for name, start in steady.items() if len(numbered[_own(name), start]) == len(blocks)}


def totals(makes: Sequence[Make]) -> set[str]:
    """Attributes that say how many blocks there are, of the kind that has them or in all: they are of no block.

    Example:
        >>> sorted(totals([{"heads": 2, "depth": 3}, {"heads": 2, "depth": 3, "n": 1}, {"heads": 2, "depth": 3}]))
        ['depth', 'n']
    """
    values: dict[str, list[Any]] = {}
    for make in makes:
        for name, value in make.items():
            values.setdefault(name, []).append(value)
    return {
        name
        for name, found in values.items()
        if type(found[0]) is int and found[0] in (len(found), len(makes)) and all(v == found[0] for v in found)
    }


def difference(made: Make, wanted: Make, but: Collection[str] = ()) -> str | None:
    """The first thing in which a block is not what it should be, in words; None where there is none.

    Args:
        made: the block.
        wanted: what it should be.
        but: attributes that do not count.
    """
    name = next(iter(differences(made, wanted, but)), None)
    if name is None:
        return None
    what = "its class" if name == "()" else f"the class of {name[:-2]}" if name.endswith("()") else name
    return f"{what} would be {made.get(name, 'absent')} and was {wanted.get(name, 'absent')}"


def differences(made: Make, wanted: Make, but: Collection[str] = ()) -> Iterator[str]:
    """The names of what is not the same in two blocks."""
    for name in dict.fromkeys([*wanted, *made]):
        if name not in but and not same(made, wanted, name):
            yield name


def same(a: Make, b: Make, name: str) -> bool:
    """Whether two blocks have the same attribute, or both do not have it."""
    return a.get(name) == b.get(name) and (name in a) == (name in b)


def _own(name: str) -> str:
    return name.rpartition(".")[2]


def _all(block: nn.Module, k: int) -> Iterator[tuple[str, Any]]:
    for path, module in block.named_modules():
        yield f"{path}()", type(module).__name__
    for tensors in (block.named_parameters(), block.named_buffers()):
        for name, tensor in tensors:
            yield name, tuple(tensor.shape)
    yield from _attributes(block)
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, dict) and isinstance(value.get(k, ...), _PLAIN):
                yield f"{path}.{name}[own]", value[k]


def _attributes(block: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in block.named_modules():
        if "Drop" in type(module).__name__:
            continue
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training" and "drop" not in name and isinstance(value, _PLAIN):
                yield prefix + name, value
