"""Entries by which a tower's blocks are of one kind or another: found where trying every value finds them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest

from layerwright.core.depth_search import Search, Tower, by_key, speaking

Rule = Callable[[Mapping[str, Any], int, int], bool]
# How classes say which blocks are of the other kind: entries, and whether block k of L is.
RULES: dict[str, tuple[dict[str, Any], Rule]] = {
    "period and offset": ({"period": 3, "offset": 1}, lambda e, k, depth: k % e["period"] == e["offset"]),
    "step": ({"step": 2}, lambda e, k, depth: (k + 1) % e["step"] == 0),
    "threshold": ({"dense": 2}, lambda e, k, depth: k >= e["dense"]),
    "counted from the end": ({"shared": 2}, lambda e, k, depth: k >= depth - e["shared"]),
    "numbers": ({"layers": [0, 3]}, lambda e, k, depth: k in e["layers"]),
    "step but for numbers": (
        {"step": 2, "layers": [3]},
        lambda e, k, depth: (k + 1) % e["step"] == 0 and k not in e["layers"],
    ),
    "items": ({"kinds": ["a", "b", "a", "b", "b"]}, lambda e, k, depth: e["kinds"][k] == "b"),
}
DEPTH = 5


def tower(rule: Rule, entries: Mapping[str, Any], depth: int) -> Tower:
    """A tower whose blocks are all as wide as the entries say, and some of them of the other kind."""

    def made(changed: Mapping[str, Any]) -> list[dict[str, Any]] | str:
        if changed.get("offset", 0) >= changed.get("period", 9):
            return "offset must be smaller than the period"
        try:
            return [{"kind": rule(changed, k, depth), "width": changed["width"]} for k in range(depth)]
        except (ZeroDivisionError, IndexError) as error:
            return str(error)

    return Tower(made, {**entries, "width": 4}, depth)


def every(value: Any, depth: int) -> list[Any]:
    """All that an entry could be."""
    if isinstance(value, int):
        return [*range(depth + 3)]
    if value and isinstance(value[0], str):
        return [list(kinds) for kinds in product("ab", repeat=depth)]
    return [[k for k in range(depth) if bits >> k & 1] for bits in range(2**depth)]


def exists(rule: Rule, entries: Mapping[str, Any], wanted: Sequence[bool]) -> bool:
    names = list(entries)
    new = tower(rule, entries, len(wanted))
    for values in product(*(every(entries[name], len(wanted)) for name in names)):
        made = new.made({**new.entries, **dict(zip(names, values))})
        if not isinstance(made, str) and [make["kind"] for make in made] == list(wanted):
            return True
    return False


@pytest.mark.parametrize("name", RULES)
def test_what_trying_everything_finds_is_found(name: str) -> None:
    entries, rule = RULES[name]
    base = tower(rule, entries, DEPTH)
    kinds = base.made(base.entries)
    assert not isinstance(kinds, str)
    chance, outcomes = random.Random(0), set()
    for _ in range(40):
        order = [chance.randrange(DEPTH) for _ in range(chance.randint(1, 6))]
        wanted = [kinds[k] for k in order]
        new = tower(rule, entries, len(order))
        found = new.made(Search(base, new, kinds, order, lambda made: ()).best())
        possible = exists(rule, entries, [make["kind"] for make in wanted])
        assert (found == wanted) == possible, (order, found)
        outcomes.add(possible)
    assert True in outcomes
    assert (False in outcomes) == (name not in ("numbers", "step but for numbers", "items"))


def test_a_width_speaks_of_no_single_block() -> None:
    entries, rule = RULES["period and offset"]
    base = tower(rule, entries, DEPTH)
    kinds = base.made(base.entries)
    assert not isinstance(kinds, str)
    assert speaking(base, kinds) == {"period": {"kind"}, "offset": {"kind"}}


def test_what_cannot_be_is_said_with_the_entries_that_would_have_to() -> None:
    entries, rule = RULES["threshold"]
    base = tower(rule, entries, DEPTH)
    kinds = base.made(base.entries)
    assert not isinstance(kinds, str)
    order = [3, 0]
    search = Search(base, tower(rule, entries, 2), kinds, order, lambda made: ())
    said = search.missed([{"kind": False, "width": 4}] * 2, 0)
    assert said.startswith("no value of dense makes every block what its source is; block 0 is to be block 3")
    assert said.endswith("kind would be False and was True")


def test_numbers_of_blocks_may_be_padded() -> None:
    assert by_key({"01": "a", "10": "b"}, [10, 0, 1, 1]) == {"0": "b", "2": "a", "3": "a"}
