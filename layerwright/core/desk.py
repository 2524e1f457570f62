"""Where quantities meet the measures that asked for them: call the function, hand its numbers to the reducers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layerwright.core.few import bound
from layerwright.core.packet import Packet
from layerwright.core.reduce import Group, Key, Reducer
from layerwright.core.registry import Measure

_KEPT = "kept/"


class Numbers(NamedTuple):
    """What a measure gave for one row: numbers by sequence or token, and where they count (None: where tokens do)."""

    values: Tensor
    where: Tensor | None = None


def join(pieces: list[Numbers]) -> Numbers:
    """Numbers of pieces of a batch, one after another."""
    where = [p.where for p in pieces if p.where is not None]
    return Numbers(torch.cat([p.values for p in pieces]), torch.cat(where) if where else None)


def spread(pieces: Sequence[tuple[slice, Numbers]], size: int) -> Numbers:
    """Numbers by sequence at some places of a batch; the other places do not count.

    Example:
        >>> spread([(slice(1, 3, 2), Numbers(torch.tensor([5.0])))], 3)
        Numbers(values=tensor([0., 5., 0.]), where=tensor([[False],
                [ True],
                [False]]))
    """
    values = pieces[0][1].values.new_zeros(size)
    where = torch.zeros(size, 1, dtype=torch.bool, device=values.device)
    for places, numbers in pieces:
        values[places] = numbers.values
        where[places] = True if numbers.where is None else numbers.where
    return Numbers(values, where)


class Desk:
    """The chosen measures with their options, and one reducer for each."""

    def __init__(self, measures: Iterable[Measure], options: Mapping[str, Mapping[str, Any]]) -> None:
        """Open a reducer for every measure that is fed by a pass over data or weights."""
        self.measures = list(measures)
        self.options = options
        self.reducers = {m.name: Reducer() for m in self.measures}
        self.kept: dict[str, list[Tensor]] = {}

    def names(self, *quantities: str) -> bool:
        """Whether any measure asks for one of these quantities."""
        return any(need in quantities for m in self.measures for need in m.needs)

    def first(self, *scopes: str) -> int:
        """How many of the first sequences measures of these scopes look at: the most of their `sequences`, or all."""
        chosen = [{**m.options, **self.options.get(m.name, {})} for m in self.measures if m.scope in scopes]
        return max((bound(options.get("sequences", sys.maxsize)) for options in chosen), default=0)

    def keep(self, name: str, rows: Tensor) -> None:
        """Keep rows for measures that are called at the end, behind those of the same name."""
        self.kept.setdefault(name, []).append(rows.detach().cpu())

    def wants(self, *scopes: str) -> bool:
        """Whether any measure belongs to one of these scopes."""
        return any(m.scope in scopes for m in self.measures)

    def give(self, scope: str, key: Key, quantities: Mapping[str, Any], prefix: str = "") -> None:
        """Feed every measure of the scope that needs no more than these quantities.

        Args:
            scope: the pass that calls (`core/quantities.py`).
            key: values of the scope's index columns.
            quantities: what is known at this place.
            prefix: put before the names of a measure's quantities, for a second run under other conditions.
        """
        for (name, more), numbers in self.evaluate(scope, quantities, prefix).items():
            self.add(name, (*key, *more), numbers)

    def evaluate(self, scope: str, quantities: Mapping[str, Any], prefix: str = "") -> dict[tuple[str, Key], Numbers]:
        """Numbers of every measure of the scope, by measure and by what its own result adds to the key."""
        found: dict[tuple[str, Key], Numbers] = {}
        for m in self.measures:
            if m.scope == scope and all(need in quantities for need in m.needs):
                result = m.function(*(quantities[need] for need in m.needs), **self.options.get(m.name, {}))
                found.update({(m.name, more): numbers for more, numbers in _rows(result, prefix)})
        return found

    def add(self, name: str, key: Key, numbers: Numbers) -> None:
        """Hand numbers to a measure's reducer; a key longer than the table's index loses its end (`part`)."""
        index = next(m.index for m in self.measures if m.name == name)
        values, where = numbers
        self.reducers[name].add(key[: len(index)], values, where)

    def close(self, scope: str, mask: Tensor | None) -> None:
        """End a batch for the measures of a scope; `mask` says which tokens count."""
        for m in self.measures:
            if m.scope == scope:
                self.reducers[m.name].close_batch(mask)

    def take(self) -> Packet:
        """All that was reduced, as a packet, and start again: the record of a block, or what one worker has to give."""
        places: dict[str, list[dict[str, Any]]] = {}
        tensors: dict[str, Tensor] = {}
        for name, reducer in self.reducers.items():
            for number, (keys, group) in enumerate(reducer.groups.items()):
                places.setdefault(name, []).append({"keys": keys, "stride": group.stride, "seen": group.seen})
                tensors[f"{name}/{number}/sums"] = torch.from_numpy(group.sums)
                tensors[f"{name}/{number}/sample"] = torch.from_numpy(group.sample)
        tensors |= {f"{_KEPT}{name}": torch.cat(pieces) for name, pieces in self.kept.items()}
        self.reducers, self.kept = {m.name: Reducer() for m in self.measures}, {}
        return Packet({"measures": places}, tensors)

    def put(self, packet: Packet) -> None:
        """Add what a packet of `take` holds: other rows, or further sequences of the same rows."""
        for name, rows in packet.tensors.items():
            if name.startswith(_KEPT):
                self.keep(name.removeprefix(_KEPT), rows)
        for name, places in packet.data["measures"].items():
            for number, place in enumerate(places):
                sums, sample = (packet.tensors[f"{name}/{number}/{part}"].numpy() for part in ("sums", "sample"))
                keys = tuple(tuple(key) for key in place["keys"])
                self.reducers[name].merge(keys, Group([sums], sample, place["stride"], place["seen"]))


def _rows(result: Any, prefix: str) -> Iterable[tuple[Key, Numbers]]:
    """What a measure returned, by what it adds to the key: one tensor, or a mapping of tensors or (tensor, where)."""
    if isinstance(result, Tensor):
        return [((), Numbers(result))]
    return [
        (key if isinstance(key, tuple) else (prefix + key,), Numbers(x) if isinstance(x, Tensor) else Numbers(*x))
        for key, x in result.items()
    ]
