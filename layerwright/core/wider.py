"""How all weights of a model go wider together, found by trying on small models of its class.

No table of models. A small model is built twice, once so many times as wide; the weights of the wide one are copies of
the narrow one's, side by side. Where each axis is taken for what it is, both answer the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import gcd
from typing import Any

import torch
from torch import nn

from layerwright.core.depth_config import DepthConfig
from layerwright.core.errors import UserError
from layerwright.core.frame import config_of
from layerwright.core.load import quietly
from layerwright.core.makes import makes_of
from layerwright.core.starts import Start, start_of
from layerwright.core.twins import Axes, Twins
from layerwright.core.weightless import weightless

# What was found for a configuration, which is asked for once a step of a plan and once a check of it.
_FOUND: dict[str, Widening] = {}
# The narrow model is at least this wide, where the base is.
_LEAST = 16
_TOKENS = 64


@dataclass(frozen=True)
class Role:
    """What happens to a weight.

    Attributes:
        axes: which of its axes grow, each in parts that lie one after the other, as shares of it.
        reads: the axis along which it meets what it reads; None where it multiplies nothing.
        neutral: value at which it scales nothing, where it is the scale of a norm.
        scale: by what its copies are multiplied, so that the model answers the same.
        alone: by what it is multiplied where zeros stand beside it in place of copies.
        start: how the class starts it.
    """

    axes: Mapping[int, tuple[Fraction, ...]]
    reads: int | None
    neutral: float | None
    scale: float
    alone: float
    start: Start

    def parts(self, shape: Sequence[int]) -> dict[int, list[int]]:
        """The lengths of the parts of the axes of a weight of this shape."""
        return {axis: [int(share * shape[axis]) for share in shares] for axis, shares in self.axes.items()}


@dataclass(frozen=True)
class Widening:
    """How a model goes wider.

    Attributes:
        settings: entries of the configuration of the wide model.
        blocks: for each block of the base, its weights by name and what happens to them.
        outside: the same for weights of no block, by name in the model.
        shapes: of the weights of each block of the base.
    """

    settings: Mapping[str, int]
    blocks: Sequence[Mapping[str, Role]]
    outside: Mapping[str, Role]
    shapes: Sequence[Mapping[str, tuple[int, ...]]]


def widening(model: nn.Module, config: DepthConfig, container: str, width: int, factor: int) -> Widening:
    """How a model goes so many times as wide: its stream, and as much else as can go with it.

    Args:
        model: whose class is asked.
        config: of it.
        container: path of its list of blocks.
        width: of its stream.
        factor: how many times.

    Raises:
        UserError: there is no wider model of which copies of its weights compute the same.
    """
    key = json.dumps([type(model).__name__, container, width, factor, config.entries], sort_keys=True, default=str)
    if key not in _FOUND:
        _FOUND[key] = _Search(model, config, container, width, factor).found()
    return _FOUND[key]


class _Search:
    """The entries of the configuration that go together with the width."""

    def __init__(self, model: nn.Module, config: DepthConfig, container: str, width: int, factor: int) -> None:
        self.model, self.config, self.container, self.width, self.factor = model, config, container, width, factor
        makes = config.base
        self.kinds = [k for k, make in enumerate(makes) if makes.index(make) == k]
        self.kind_of = [self.kinds.index(makes.index(make)) for make in makes]
        self.narrow = self._built({}, "meta")
        self.entries = dict(self._entries())

    def found(self) -> Widening:
        """The widest model of which all is known."""
        stream = [name for name, value in self.entries.items() if value == self.width]
        others = [name for name in self.entries if name not in stream]
        for names in (n for size in range(1, 4) for n in combinations([*stream, *others], size)):
            if set(names) & set(stream) and (twins := self._tried(names)) is not None:
                return self._described(*self._extended(names, twins))
        raise UserError(
            f"found no entries of the configuration with which a {type(self.model).__name__} of {self.factor} times "
            "the width computes the same from copies of its weights"
        )

    def _extended(self, names: tuple[str, ...], twins: Twins) -> tuple[tuple[str, ...], Twins]:
        """The same with whatever else can be made wider: heads, hidden units."""
        again = True
        while again:
            again = False
            left = [name for name in self.entries if name not in names and self._shapes_blocks(name)]
            for more in (n for size in (1, 2) for n in combinations(left, size)):
                grown = self._grown((*names, *more))
                wider = grown is not None and sum(map(len, grown.values())) > sum(map(len, twins.axes.values()))
                if wider and (found := self._tried((*names, *more))) is not None:
                    names, twins, again = (*names, *more), found, True
                    break
        return names, twins

    def _shapes_blocks(self, name: str) -> bool:
        """Whether weights of the blocks have other shapes with another value of an entry alone, or there is none."""
        made = self._built({name: self.factor * self.entries[name]}, "meta")
        pairs = zip(self._makes(self.narrow), self._makes(made)) if made is not None else ()
        return made is None or any(old != new.get(n) for a, new in pairs for n, old in a.items() if type(old) is tuple)

    # Building

    def _built(self, settings: Mapping[str, int], device: str) -> Any:
        """A model with one block of each kind; None where there is none with these settings."""
        entries, _ = self.config.of(self.kinds, settings)
        try:
            with quietly(), weightless() if device == "meta" else torch.device(device):
                return type(self.model)(config_of(self.model.config, entries)).eval()
        except Exception:  # whatever a class says to a configuration that it cannot have
            return None

    def _entries(self) -> Iterator[tuple[str, int]]:
        """Whole numbers on which the blocks depend, or the shapes of what stands around them and is as wide."""
        before, around = self._makes(self.narrow), dict(_shapes(self.narrow))
        for name, value in self.config.beside().items():
            if type(value) is int and value >= 1 and name != self.config.place[-1]:
                made = self._built({name: self.factor * value}, "meta")
                as_wide = value == self.width and made is not None and dict(_shapes(made)) != around
                if made is None or as_wide or self._makes(made) != before:
                    yield name, value

    def _makes(self, model: Any) -> list[dict[str, Any]]:
        return makes_of([model.get_submodule(f"{self.container}.{j}") for j in range(len(self.kinds))], ())

    def _grown(self, names: Sequence[str]) -> Mapping[str, Axes] | None:
        """The axes that grow with these entries; None where anything else becomes different."""
        wide = self._built({name: self.factor * self.entries[name] for name in names}, "meta")
        if wide is None or not all(map(self._same, self._makes(self.narrow), self._makes(wide))):
            return None
        return longer_axes(self.narrow, wide, self.factor)

    def _same(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Whether a block is what it was, but for shapes, and for counts of what there is more of."""
        if before.keys() != after.keys():
            return False
        plain = [(old, after[name]) for name, old in before.items() if not isinstance(old, tuple)]
        return all(new == old or (type(old) is int and new == self.factor * old) for old, new in plain)

    # Trying

    def _tried(self, names: Sequence[str]) -> Twins | None:
        """A narrow and a wide model that compute the same; None where there are none."""
        if self._grown(names) is None:
            return None
        small = self._divisor(names)
        sizes = {name: self.entries[name] // small for name in names}
        few = self._few_tokens() if self._built(sizes | self._few_tokens(), "meta") is not None else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = (self._built(sizes | few, "cpu") for _ in range(2))
            wide = self._built({name: self.factor * value for name, value in sizes.items()} | few, "cpu")
            axes = None if first is None or wide is None else longer_axes(first, wide, self.factor)
            if axes is None:
                return None
            self.starts = dict(_starts(first, second))
            twins = Twins(first, wide, self.container, axes, self.factor)
            return twins if twins.fit(self.width // small) else None

    def _few_tokens(self) -> dict[str, int]:
        """A small vocabulary, in which special tokens come first."""
        beside = self.config.beside()
        special = [name for name, value in beside.items() if name.endswith("token_id") and type(value) is int]
        return {"vocab_size": _TOKENS} | dict.fromkeys(special, 0) if beside.get("vocab_size", 0) > _TOKENS else {}

    def _divisor(self, names: Sequence[str]) -> int:
        """By how much the entries can be made smaller for the trial."""
        common = gcd(*(self.entries[name] for name in names))
        return max(d for d in range(1, common + 1) if common % d == 0 and (d == 1 or self.width // d >= _LEAST))

    def _described(self, names: Sequence[str], twins: Twins) -> Widening:
        roles = {name: self._role(name, twins) for name, axes in twins.axes.items() if axes}
        inside = [f"{self.container}.{j}." for j in range(len(self.kinds))]
        kinds = [{n.removeprefix(path): r for n, r in roles.items() if n.startswith(path)} for path in inside]
        shapes = [dict(_shapes(self.narrow.get_submodule(path.removesuffix(".")))) for path in inside]
        return Widening(
            {name: self.factor * self.entries[name] for name in names},
            [kinds[k] for k in self.kind_of],
            {name: role for name, role in roles.items() if not name.startswith(tuple(inside))},
            [shapes[k] for k in self.kind_of],
        )

    def _role(self, name: str, twins: Twins) -> Role:
        shape, scale, neutral = twins.shapes[name], twins.scales.get(name, 1.0), twins.neutral.get(name)
        axes = {axis: tuple(Fraction(n, shape[axis]) for n in parts) for axis, parts in twins.parts[name].items()}
        # A tied head adds up what all copies give; zeros add nothing.
        alone = scale * self.factor if scale != 1.0 and twins.tied and name not in twins.embeddings() else scale
        return Role(axes, twins.reads[name], neutral, scale, alone, self.starts[name])


def longer_axes(narrow: nn.Module, wide: nn.Module, factor: int) -> dict[str, Axes] | None:
    """For each weight the axes that are so many times longer; None where models differ in anything else."""
    before, after = dict(_shapes(narrow)), dict(_shapes(wide))
    if before.keys() != after.keys():
        return None
    found = {}
    for name, old in before.items():
        new = after[name]
        if len(new) != len(old) or any(b not in (a, factor * a) for a, b in zip(old, new)):
            return None
        found[name] = tuple(axis for axis, (a, b) in enumerate(zip(old, new)) if a != b)
    return found


def _shapes(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())


def _starts(first: nn.Module, second: nn.Module) -> Iterator[tuple[str, Start]]:
    """How the class starts each weight."""
    other = dict(second.named_parameters(remove_duplicate=False))
    for name, p in first.named_parameters(remove_duplicate=False):
        yield name, start_of(p.detach().clone(), other[name].detach(), p.device)
