"""Values of entries of a configuration with which it makes the blocks that are wanted.

What an entry says of blocks is seen by changing it: it speaks of the attributes that change in some blocks. Entries
that speak of the same attributes (a period and an offset) are tried together, others apart. A value that is tried is a
number that says something of where blocks of a kind are to stand: the first, the distance to the next, how many follow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise, product
from typing import Any, NamedTuple

from layerwright.core.makes import Make, difference, differences, same

Entries = dict[str, Any]
Makes = Sequence[Make]
Made = Callable[[Mapping[str, Any]], Makes | str]
But = Callable[[Makes], Collection[str]]
Choices = Mapping[str, Sequence[Any]]
# The most models that are built for one search.
_MOST_BUILDS = 400


class Tower(NamedTuple):
    """A tower, and how to see what it would be with other entries.

    Attributes:
        made: what the blocks are with some entries, or in words why there is no such model.
        entries: that may speak of blocks.
        depth: how many blocks there are.
    """

    made: Made
    entries: Mapping[str, Any]
    depth: int


class Search:
    """A search for entries with which the blocks are what they are to be."""

    def __init__(self, base: Tower, new: Tower, kinds: Makes, order: Sequence[int], but: But) -> None:
        """What is wanted of which entries.

        Args:
            base: the tower that there is.
            new: the tower that is to be.
            kinds: what the blocks of the base are.
            order: the source of each block.
            but: attributes of blocks that do not count.
        """
        self._base, self._new, self._kinds, self._but = base, new, kinds, but
        self._wanted = [kinds[k] for k in order]
        self._order = order
        self._left = _MOST_BUILDS
        self._speaks = _both(speaking(base, kinds), speaking(new, kinds))

    def best(self) -> Mapping[str, Any]:
        """The entries with which the fewest attributes are not as wanted."""
        entries, choices = self._new.entries, self._choices()
        for names in together({name: self._speaks[name] for name in choices}):
            about = set().union(*(self._speaks[name] for name in names))
            entries = self._best(entries, {name: choices[name] for name in names}, about)
        return entries

    def _choices(self) -> dict[str, list[Any]]:
        """Values that an entry may have."""
        found = {}
        for name, about in self._speaks.items():
            where = patterns(self._wanted, about)
            if values := candidates(self._base.entries[name], self._base.depth, self._order, where):
                found[name] = values
        return found

    def _best(self, entries: Mapping[str, Any], choices: Choices, about: Collection[str]) -> Mapping[str, Any]:
        """The same for entries that speak of the same attributes: one of them is changed, or two."""
        best, fewest = entries, self._off(entries, about)
        for names in (*combinations(choices, 1), *combinations(choices, 2)):
            for values in product(*(choices[name] for name in names)):
                if not fewest or not self._left:
                    return best
                self._left -= 1
                trial = {**entries, **dict(zip(names, values))}
                if (off := self._off(trial, about)) < fewest:
                    best, fewest = trial, off
        return best

    def _off(self, entries: Mapping[str, Any], about: Collection[str]) -> float:
        """How many of some attributes are not as wanted."""
        made = self._new.made(entries)
        if isinstance(made, str):
            return float("inf")
        but, pairs = self._but(made), zip(made, self._wanted, strict=True)
        return sum(name in about for a, b in pairs for name in differences(a, b, but))

    def missed(self, made: Makes, j: int) -> str:
        """What block j is not, and the entries that would have to say it, in words."""
        but, a, b = self._but(made), made[j], self._wanted[j]
        first = next(differences(a, b, but))
        names = " and ".join([n for n, about in self._speaks.items() if first in about] or self._switches(first))
        return (
            f"{f'no value of {names}' if names else 'no entry of the configuration'} makes every block what its source "
            f"is; block {j} is to be block {self._order[j]}, and {difference(a, b, but)}"
        )

    def _switches(self, attribute: str) -> list[str]:
        """Switches on which an attribute depends in some blocks, and not in others."""
        found = []
        for name, value in self._base.entries.items():
            made = self._base.made({**self._base.entries, name: not value}) if type(value) is bool else ""
            kept = {same(a, b, attribute) for a, b in zip(made, self._kinds)} if not isinstance(made, str) else ()
            if len(kept) == 2:
                found.append(name)
        return found


def speaking(tower: Tower, kinds: Makes) -> dict[str, set[str]]:
    """For each entry that says which block is of which kind, the attributes that are others with another value of it.

    With another value some block becomes of another kind that there is; from a width, it becomes of none.

    Args:
        tower: what is asked.
        kinds: blocks of all kinds.
    """
    before = tower.made(tower.entries)
    kinds = [kind for k, kind in enumerate(kinds) if kind not in kinds[:k]]
    found: dict[str, set[str]] = {}
    for name, value in tower.entries.items() if not isinstance(before, str) else ():
        for other in _others(value, tower.depth):
            after = tower.made({**tower.entries, name: other})
            if isinstance(before, str) or isinstance(after, str):
                continue
            for old, new in zip(before, after, strict=True):
                changed = set(differences(new, old))
                if changed and all(any(same(new, kind, attribute) for kind in kinds) for attribute in changed):
                    found[name] = found.get(name, set()) | changed
    return found


def _both(first: Mapping[str, set[str]], second: Mapping[str, set[str]]) -> dict[str, set[str]]:
    return {name: first.get(name, set()) | second.get(name, set()) for name in {**first, **second}}


def _others(value: Any, depth: int) -> Iterator[Any]:
    """Values near one that may speak of blocks: of a number, of some numbers, of an item a block."""
    if type(value) is int and 0 <= value <= depth:
        yield from (near for near in (value + 1, value - 1) if near >= 0)
    if isinstance(value, (list, str)) and len(value) == depth:
        unlike = next((k for k in range(1, depth) if value[k] != value[k - 1]), None)
        if unlike is not None:
            order = [*range(depth)]
            order[unlike - 1 : unlike + 1] = [unlike, unlike - 1]
            yield by_block(value, order)
    if are_numbers(value, depth):
        yield from (value[1:], value[:-1], [k for k in range(depth) if k not in value])


def candidates(value: Any, depth: int, order: Sequence[int], patterns: Collection[frozenset[int]]) -> list[Any]:
    """What an entry might be for other blocks.

    Args:
        value: of the base.
        depth: of the base.
        order: the source of each block.
        patterns: where blocks of some kind are to stand.
    """
    if type(value) is int:
        return sorted({n for pattern in patterns for n in telling(pattern, len(order))})
    found: list[Any] = [by_block(value, order)] if isinstance(value, (list, str)) and len(value) == depth else []
    return found + ([*map(sorted, patterns), []] if are_numbers(value, depth) else [])


def patterns(wanted: Makes, about: Iterable[str]) -> list[frozenset[int]]:
    """Where the blocks stand that have one value of an attribute, for each value of some attributes.

    Example:
        >>> [sorted(found) for found in patterns([{"a": 1}, {"a": 2}, {"a": 1}], ["a"])]
        [[0, 2], [1]]
    """
    found: dict[frozenset[int], None] = {}
    for name in about:
        for make in wanted:
            found[frozenset(j for j, other in enumerate(wanted) if same(other, make, name))] = None
    return list(found)


def telling(pattern: Collection[int], depth: int) -> set[int]:
    """Numbers by which a threshold, a period, an offset or a count may say where blocks of a kind stand.

    Example:
        >>> sorted(telling({1, 4, 7}, 9))  # every third from 1
        [0, 1, 2, 3, 7, 8, 9, 10]
    """
    found = {0, 1, depth, depth + 1}
    if pattern:
        first, last = min(pattern), max(pattern)
        found |= {first, first + 1, depth - first, last, last + 1, depth - last - 1, len(pattern)}
        found |= {b - a for a, b in pairwise(sorted(pattern))}
    return found


def together(speaks: Mapping[str, set[str]]) -> list[list[str]]:
    """The names in groups: those that speak of a common attribute are in one.

    Example:
        >>> together({"period": {"kind"}, "first": {"width"}, "offset": {"kind"}})
        [['period', 'offset'], ['first']]
    """
    groups: list[tuple[list[str], set[str]]] = []
    for name, about in speaks.items():
        touching = [group for group in groups if group[1] & about]
        names = [n for group in touching for n in group[0]]
        about = about.union(*(group[1] for group in touching))
        groups = [group for group in groups if group not in touching]
        groups.append(([*names, name], about))
    return [names for names, _ in sorted(groups, key=lambda group: [*speaks].index(group[0][0]))]


# Values by block


def are_numbers(value: Any, depth: int) -> bool:
    """Whether a value may be the numbers of some blocks."""
    return isinstance(value, list) and all(type(k) is int and 0 <= k < depth for k in value)


def by_block(value: Any, order: Sequence[int]) -> Any:
    """One item a block, each that of its source."""
    return "".join(value[k] for k in order) if isinstance(value, str) else [value[k] for k in order]


def by_number(value: Collection[int], order: Sequence[int]) -> list[int]:
    """The numbers of the blocks whose sources' numbers are given."""
    return [j for j, k in enumerate(order) if k in value]


def by_key(value: Mapping[Any, Any], order: Sequence[int]) -> dict[str, Any]:
    """What is said of some blocks under their numbers; `"03"` is one."""
    said = {int(key): item for key, item in value.items()}
    return {str(j): said[k] for j, k in enumerate(order) if k in said}
