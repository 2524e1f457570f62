"""A configuration for other blocks: its depth, and every entry that speaks of single blocks, by their source.

No table of models: what an entry means is found by building the model without weights and looking at its blocks. Each
block that the new configuration makes must be what its source is; where no configuration makes it so, that is said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from torch import nn

from layerwright.core.errors import UserError
from layerwright.core.makes import counters, difference, makes_of

Entries = dict[str, Any]
# The blocks of a tower, and the shapes of the weights outside them.
Built = tuple[Sequence[nn.Module], Mapping[str, tuple[int, ...]]]
Build = Callable[[Entries], Built | None]
Place = tuple[Any, ...]

# Entries of configurations that name blocks: one item a block, or the numbers of some blocks.
_A_BLOCK_EACH = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "hybrid_override_pattern")
_NUMBERS = ("mlp_only_layers", "cross_attention_layers", "full_attn_idxs", "hybrid_layer_ids", "moe_layers")
# Pairs of entries are tried together where one alone does not do.
_MOST_BUILDS = 400


class DepthConfig:
    """The entries of a configuration that go by block, found by building models from it.

    Attributes:
        entries: the configuration as plain data.
        depth: of its tower.
        place: where the entries keep the depth.
    """

    def __init__(self, entries: Entries, depth: int, build: Build) -> None:
        """Find which entry is the depth.

        Args:
            entries: the configuration as plain data.
            depth: of the tower.
            build: the blocks of the tower of a model with such a configuration, without weights, and the shapes of
                its other weights; None where it is not a possible one.

        Raises:
            UserError: no entry is the depth.
        """
        self.entries, self.depth, self._build = entries, depth, build
        built = build(entries)
        if built is None:
            raise UserError("the model's class does not build it from its own configuration again")
        self._counting = counters(built[0])
        self.base: list[dict[str, Any]] = makes_of(built[0], self._counting)
        self._loose = built[1]
        self.place = self._find()

    def _made(self, entries: Entries) -> list[dict[str, Any]] | None:
        built = self._build(entries)
        return None if built is None else makes_of(built[0], self._counting)

    def _find(self) -> Place:
        """The entry with which the tower becomes one block deeper."""
        longer = [*range(self.depth), self.depth - 1]
        found = [place for place, value in _walk(self.entries) if type(value) is int and value == self.depth]
        found.sort(key=lambda place: place[-1] not in ("num_hidden_layers", "n_layer", "num_layers"))
        for place in found:
            built = self._build(self._remapped(place, longer))
            if built is not None and len(built[0]) == len(longer):
                return place
        raise UserError(
            f"no entry of the configuration gives the number of blocks ({self.depth}), so that no model of another "
            "depth can be described"
        )

    def of(self, order: Sequence[int], settings: Mapping[str, Any] | None = None) -> tuple[Entries, tuple[str, ...]]:
        """The configuration of a tower of these source blocks, and notes on entries that were left alone.

        Args:
            order: the source of each block.
            settings: entries beside the depth that are to change after that.

        Raises:
            UserError: no configuration makes every block what its source is; the message names the first.
        """
        if list(order) == list(range(self.depth)):
            return self._set(self.entries, settings), ()
        entries = self._remapped(self.place, order)
        wanted = [self.base[k] for k in order]
        made = self._made(entries)
        if made is None or self._wrong(made, wanted):
            entries = self._solved(entries, order, wanted)
        notes = self._unknown(entries)
        return self._set(entries, settings), notes

    def beside(self, entries: Entries | None = None) -> Mapping[str, Any]:
        """The entries among which the depth stands: those of the tower."""
        found = _at(self.entries if entries is None else entries, self.place[:-1])
        return found if isinstance(found, Mapping) else {}

    def with_settings(self, settings: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """What the blocks are with other settings; None where there is no such model, or not in the same stream."""
        built = self._build(self._set(self.entries, settings))
        same = built is not None and len(built[0]) == self.depth and built[1] == self._loose
        return makes_of(built[0], self._counting) if built is not None and same else None

    def _set(self, entries: Entries, settings: Mapping[str, Any] | None) -> Entries:
        for name, value in (settings or {}).items():
            entries = _with(entries, (*self.place[:-1], name), value)
        return entries

    def _remapped(self, place: Place, order: Sequence[int]) -> Entries:
        """The depth and the known entries beside it."""
        entries = _with(self.entries, place, len(order))
        beside = _at(self.entries, place[:-1])
        for name, value in beside.items() if isinstance(beside, Mapping) else []:
            if name in _A_BLOCK_EACH and isinstance(value, (list, str)) and len(value) == self.depth:
                entries = _with(entries, (*place[:-1], name), _by_block(value, order))
            elif name in _NUMBERS and isinstance(value, list):
                entries = _with(entries, (*place[:-1], name), _by_number(value, order))
        return entries

    def _wrong(self, made: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> list[int]:
        if len(made) != len(wanted):
            return list(range(max(len(made), len(wanted))))
        return [j for j, (a, b) in enumerate(zip(made, wanted)) if difference(a, b) is not None]

    def _solved(self, entries: Entries, order: Sequence[int], wanted: Sequence[Mapping[str, Any]]) -> Entries:
        """Try other values of entries beside the depth: lists by block, numbers of blocks, thresholds, periods."""
        choices = {
            name: values
            for name, value in self.beside(entries).items()
            if name != self.place[-1] and (values := self._choices(name, value, order, wanted))
        }
        tried = 0
        groups: list[tuple[str, ...]] = [*combinations(choices, 1), *combinations(choices, 2)]
        for names in groups:
            for chosen in product(*(choices[name] for name in names)):
                trial = entries
                for name, value in zip(names, chosen):
                    trial = _with(trial, (*self.place[:-1], name), value)
                tried += 1
                made = self._made(trial)
                if made is not None and not self._wrong(made, wanted):
                    return trial
                if tried == _MOST_BUILDS:
                    raise self._impossible(entries, order, wanted)
        raise self._impossible(entries, order, wanted)

    def _choices(self, name: str, value: Any, order: Sequence[int], wanted: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What an entry might become, if it speaks of blocks at all."""
        if isinstance(value, (list, str)) and len(value) == self.depth and name not in _A_BLOCK_EACH:
            return [_by_block(value, order)]
        if isinstance(value, list) and all(type(k) is int and 0 <= k < self.depth for k in value) and "layer" in name:
            kinds = [[j for j, make in enumerate(wanted) if make == kind] for kind in _distinct(wanted)]
            return [numbers for numbers in [*kinds, []] if numbers != value]
        if type(value) is int and 0 <= value <= self.depth and self._matters(name, value):
            return [k for k in range(len(order) + 1) if k != value]
        return []

    def _matters(self, name: str, value: int) -> bool:
        """Whether blocks become others with another value."""
        other = self._made(
            _with(self.entries, (*self.place[:-1], name), value + 1 if value < self.depth else value - 1)
        )
        return (
            other is not None
            and other != self.base
            and len(other) == self.depth
            # An entry that speaks of single blocks leaves some as they are; a width changes them all.
            and any(a == b for a, b in zip(other, self.base))
        )

    def _impossible(self, entries: Entries, order: Sequence[int], wanted: Sequence[Mapping[str, Any]]) -> UserError:
        made = self._made(entries)
        if made is None or len(made) != len(wanted):
            return UserError(f"no configuration of this class has the blocks {list(order)}")
        j = self._wrong(made, wanted)[0]
        return UserError(
            f"no configuration of this class makes block {j} what block {order[j]} is: {difference(made[j], wanted[j])}"
        )

    def _unknown(self, entries: Entries) -> tuple[str, ...]:
        """Entries with one item a block of which nothing is known."""
        before, after = self.beside(), self.beside(entries)
        names = [
            name for name, value in before.items()
            if isinstance(value, list) and len(value) == self.depth > 1 and after[name] == value
            and name not in (*_A_BLOCK_EACH, *_NUMBERS)
        ]  # fmt: skip
        return tuple(
            f"the configuration's {name} is a list of {self.depth}, as many as blocks, and was left as it is: "
            "nothing shows that it goes by block"
            for name in names
        )


def _by_block(value: Any, order: Sequence[int]) -> Any:
    return "".join(value[k] for k in order) if isinstance(value, str) else [value[k] for k in order]


def _by_number(value: Sequence[int], order: Sequence[int]) -> list[int]:
    return [j for j, k in enumerate(order) if k in value]


def _distinct(makes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for make in makes:
        if make not in found:
            found.append(make)
    return found


def _walk(entries: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    items = entries.items() if isinstance(entries, Mapping) else enumerate(entries) if isinstance(entries, list) else ()
    for key, value in items:
        yield (*place, key), value
        yield from _walk(value, (*place, key))


def _at(entries: Any, place: Place) -> Any:
    for key in place:
        entries = entries[key]
    return entries


def _with(entries: Entries, place: Place, value: Any) -> Entries:
    entries = copy.deepcopy(entries)
    _at(entries, place[:-1])[place[-1]] = value
    return entries
