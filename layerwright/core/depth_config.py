"""A configuration for other blocks: its depth, and every entry that speaks of single blocks, by their source.

No table of models: what an entry means is found by building the model without weights and looking at its blocks. Each
block that the new configuration makes must be what its source is; where no configuration makes it so, that is said.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from torch import nn

from layerwright.core.depth_search import Entries, Makes, Search, Tower, are_numbers, by_block, by_key, by_number
from layerwright.core.errors import UserError
from layerwright.core.makes import counters, difference, makes_of, totals

# The blocks of a tower, and the shapes of the weights outside them.
Built = tuple[Sequence[nn.Module], Mapping[str, tuple[int, ...]]]
# Or why there is no such model.
Build = Callable[[Entries], Built | str]
Place = tuple[Any, ...]

# Entries of configurations that name blocks: one item a block, the numbers of some blocks, or something under them.
_A_BLOCK_EACH = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "hybrid_override_pattern")
_NUMBERS = (
    "mlp_only_layers", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids", "moe_layers",
    "attn_layer_indices", "deepstack_visual_indexes",
)  # fmt: skip
_UNDER_NUMBERS = ("per_layer_config",)
# Lists that may speak of blocks, by their names.
_OF_BLOCKS = re.compile("layer|block|ind(ex|ices)")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")


class DepthConfig:
    """The entries of a configuration that go by block, found by building models from it.

    Attributes:
        entries: the configuration as plain data.
        depth: of its tower.
        base: what each block is.
        place: where the entries keep the depth: a number, or a list with one item a block.
    """

    def __init__(self, entries: Entries, depth: int, build: Build) -> None:
        """Find which entry is the depth.

        Args:
            entries: the configuration as plain data.
            depth: of the tower.
            build: the blocks of the tower of a model with such a configuration, without weights, and the shapes of
                its other weights; or why there is no such model.

        Raises:
            UserError: no entry is the depth.
        """
        self.entries, self.depth, self._build = entries, depth, build
        self._orders: dict[tuple[int, ...], tuple[Entries, tuple[str, ...]]] = {}
        self._seen: dict[str, list[dict[str, Any]] | str] = {}
        built = build(entries)
        if isinstance(built, str):
            raise UserError(f"the model's class does not build it from its own configuration again: {built}")
        self._counting = counters(built[0])
        self.base: list[dict[str, Any]] = makes_of(built[0], self._counting)
        self._totals = totals(self.base)
        self._around = built[1]
        self.place, self._parts = self._find()

    def _find(self) -> tuple[Place, str | None]:
        """The entry with which the tower becomes one block deeper, and a weight around it that then is another."""
        found = [place for place, value in _walk(self.entries) if self._may_be_depth(value)]
        found.sort(key=lambda place: (type(_at(self.entries, place)) is not int, place[-1] not in _DEPTHS))
        for place, lists in product(found, (False, True)):
            longer = self._longer(place)
            built = self._build(self._remapped(place, longer, lists))
            if not isinstance(built, str) and len(built[0]) == len(longer):
                return place, next(_unlike(built[1], self._around), None)
        raise UserError(
            f"no entry of the configuration gives the number of blocks ({self.depth}), so that no model of another "
            "depth can be described"
        )

    def _may_be_depth(self, value: Any) -> bool:
        if isinstance(value, (list, str)):
            return len(value) == self.depth and all(type(item) is str for item in value)
        return type(value) is int and value == self.depth

    def _longer(self, place: Place) -> list[int]:
        """An order of one block more: the last that no list of numbers names runs twice."""
        named = {k for _, value in self._numbers(_at(self.entries, place[:-1])) for k in value}
        twice = max(set(range(self.depth)) - named, default=self.depth - 1)
        return sorted([*range(self.depth), twice])

    def _numbers(self, beside: Any) -> list[tuple[str, list[int]]]:
        entries = beside.items() if isinstance(beside, Mapping) else ()
        return [(name, value) for name, value in entries if name in _NUMBERS and isinstance(value, list)]

    # For other blocks

    def of(self, order: Sequence[int], settings: Mapping[str, Any] | None = None) -> tuple[Entries, tuple[str, ...]]:
        """The configuration of a tower of these source blocks, and notes on entries that were left alone.

        Args:
            order: the source of each block.
            settings: entries beside the depth that are to change after that.

        Raises:
            UserError: no configuration makes every block what its source is; the message names the first, and the
                entries that cannot say it.
        """
        key = tuple(order)
        if key not in self._orders:
            self._orders[key] = self._of(order)
        entries, notes = self._orders[key]
        return self._set(entries, settings), notes

    def _of(self, order: Sequence[int]) -> tuple[Entries, tuple[str, ...]]:
        if list(order) == list(range(self.depth)):
            return self.entries, ()
        self._check_around(order)
        entries = self._remapped(self.place, order)
        made = self._made(entries, len(order))
        if isinstance(made, str):
            entries = self._completed(order)
            made = self._made(entries, len(order))
        if isinstance(made, str) or self._wrong(made, order) is not None:
            entries = self._solved(entries, order)
        return entries, self._unknown(entries)

    def beside(self, entries: Entries | None = None) -> Mapping[str, Any]:
        """The entries among which the depth stands: those of the tower."""
        found = _at(self.entries if entries is None else entries, self.place[:-1])
        return found if isinstance(found, Mapping) else {}

    def with_settings(self, settings: Mapping[str, Any]) -> list[dict[str, Any]] | str:
        """What the blocks are with other settings; or why there is no such model in the same stream."""
        return self._made(self._set(self.entries, settings), self.depth)

    def refusal(self, settings: Mapping[str, Any]) -> str | None:
        """Why the model's class refuses these settings; None where it does not."""
        built = self._build(self._set(self.entries, settings))
        return built if isinstance(built, str) else None

    def _made(self, entries: Entries, depth: int) -> list[dict[str, Any]] | str:
        """What the blocks are; or why there is no such model, or not with the same weights around them."""
        key = json.dumps([depth, entries], sort_keys=True, default=str)
        if key not in self._seen:
            self._seen[key] = self._look(entries, depth)
        return self._seen[key]

    def _look(self, entries: Entries, depth: int) -> list[dict[str, Any]] | str:
        built = self._build(entries)
        if isinstance(built, str):
            return built
        if len(built[0]) != depth:
            return f"it has {len(built[0])} blocks"
        if (name := next(_unlike(built[1], self._around), None)) is not None:
            return f"{name}, around the blocks, would be {_shape(built[1], name)} and was {_shape(self._around, name)}"
        return makes_of(built[0], self._counting)

    def _wrong(self, made: Makes, order: Sequence[int]) -> int | None:
        """The first block that is not what it is to be."""
        but = self._but(made)
        pairs = enumerate(zip(made, order, strict=True))
        return next((j for j, (make, k) in pairs if difference(make, self.base[k], but) is not None), None)

    def _but(self, made: Makes) -> set[str]:
        """Attributes that say how many blocks there are, before and after."""
        return self._totals & totals(made)

    def _set(self, entries: Entries, settings: Mapping[str, Any] | None) -> Entries:
        """The entries with others beside the depth."""
        entries = copy.deepcopy(entries)
        if settings:
            _at(entries, self.place[:-1]).update(settings)
        return entries

    def _remapped(self, place: Place, order: Sequence[int], lists: bool = False) -> Entries:
        """The depth and the known entries beside it; or every list with one item a block."""
        entries = copy.deepcopy(self.entries)
        beside = _at(entries, place[:-1])
        for name, value in [*beside.items()] if isinstance(beside, Mapping) else ():
            known = name in _A_BLOCK_EACH or (lists and isinstance(value, list))
            if known and isinstance(value, (list, str)) and len(value) == self.depth:
                beside[name] = by_block(value, order)
            elif name in _NUMBERS and isinstance(value, list):
                beside[name] = by_number(value, order)
            elif name in _UNDER_NUMBERS and isinstance(value, Mapping):
                beside[name] = by_key(value, order)
        depth = _at(self.entries, place)
        beside[place[-1]] = len(order) if type(depth) is int else by_block(depth, order)
        return entries

    def _completed(self, order: Sequence[int]) -> Entries:
        """The same with more lists of one item a block, as few as do, where there is no such model without them."""
        plain, entries = self._remapped(self.place, order), self._remapped(self.place, order, lists=True)
        if isinstance(self._made(entries, len(order)), str):
            return plain
        for name, value in self.beside(plain).items():
            if value != self.beside(entries)[name]:
                fewer = self._set(entries, {name: value})
                entries = entries if isinstance(self._made(fewer, len(order)), str) else fewer
        return entries

    def _solved(self, entries: Entries, order: Sequence[int]) -> Entries:
        """Try other values of entries beside the depth: lists by block, numbers of blocks, thresholds, periods."""
        base, new = self._tower(self.entries, self.depth), self._tower(entries, len(order))
        search = Search(base, new, self.base, order, self._but)
        found = search.best()
        made = new.made(found)
        if isinstance(made, str):
            raise UserError(f"no configuration of this class has the blocks {list(order)}: {made}")
        if (j := self._wrong(made, order)) is not None:
            raise UserError(search.missed(made, j))
        return self._set(entries, found)

    def _tower(self, entries: Entries, depth: int) -> Tower:
        """A tower, and what it is with other entries beside its depth."""
        beside = {name: value for name, value in self.beside(entries).items() if name != self.place[-1]}
        return Tower(lambda changed: self._made(self._set(entries, changed), depth), beside, depth)

    # What cannot be said

    def _check_around(self, order: Sequence[int]) -> None:
        """Refuse an order for which weights around the blocks would have to change with them."""
        if self._parts is not None:
            raise UserError(
                f"{self._parts}, around the blocks, is made for {self.place[-1]} {self.depth} and holds something for "
                "each block: blocks cannot be dropped, repeated or moved without it"
            )
        for name, value in self._numbers(self.beside()):
            kept = [k for k in order if k in value]
            built = None if kept == value else self._build(self._set(self.entries, {name: value[:-1]}))
            if built is not None and not isinstance(built, str):
                for weight in _unlike(built[1], self._around):
                    raise UserError(
                        f"{name} {value}: each of these blocks has weights of its own around the tower ({weight}), so "
                        f"that they must stay as many and in this order; got {kept} of them"
                    )

    def _unknown(self, entries: Entries) -> tuple[str, ...]:
        """Lists that may speak of blocks, of which nothing is known."""
        after, known = self.beside(entries), (*_A_BLOCK_EACH, *_NUMBERS, self.place[-1])
        said = {}
        for name, value in self.beside().items():
            if not isinstance(value, list) or name in known or after[name] != value:
                continue
            if len(value) == self.depth > 1:
                said[name] = f"a list of {self.depth}, as many as blocks,"
            elif value and are_numbers(value, self.depth) and _rises(value) and _OF_BLOCKS.search(name):
                said[name] = f"{value}, which may be numbers of blocks,"
        return tuple(
            f"the configuration's {name} is {what} and was left as it is: nothing shows that it goes by block"
            for name, what in said.items()
        )


def _rises(value: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(value))


def _unlike(shapes: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    """Names of weights that are not in both, or not of one shape."""
    return (name for name in {**others, **shapes} if shapes.get(name) != others.get(name))


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"


def _walk(entries: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    items = entries.items() if isinstance(entries, Mapping) else enumerate(entries) if isinstance(entries, list) else ()
    for key, value in items:
        yield (*place, key), value
        yield from _walk(value, (*place, key))


def _at(entries: Any, place: Place) -> Any:
    for key in place:
        entries = entries[key]
    return entries
