"""From a parameter to the places where it is used, and which sample of a batch each of them belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from layerwright.core.tangent.graph import Step, passed, passes
from layerwright.core.tangent.uses import Use, use_of

Deltas = Mapping[Node, Tensor | None]
# How far what belongs to a sample may be from what its weight makes of it, as a share; rounding is far less.
_SAME = 1e-4


class Link(NamedTuple):
    """A step on the way to a use, and the shape of what enters it."""

    step: Step
    shape: tuple[int, ...]


class Route(NamedTuple):
    """A way from a parameter to a use.

    Attributes:
        chain: steps that only make another tensor of it.
        step: where that is used.
        use: how.
        places: where what comes back belongs.
        shape: of what is used.
    """

    chain: tuple[Link, ...]
    step: Step
    use: Use
    places: Places
    shape: tuple[int, ...]


class Places(NamedTuple):
    """Which units of a use belong to which of n samples.

    Attributes:
        n: samples.
        units: their numbers, `[n, C]`, where there is none their number; None where units stand in the order of
            samples, as many for each.
    """

    n: int
    units: Tensor | None

    @property
    def any(self) -> bool:
        """Whether anything comes back to any unit."""
        return self.units is None or self.units.numel() > 0

    def arrange(self, x: Tensor) -> Tensor:
        """From units of T places, `[K, U, T, …]`, to samples, `[K, n, C · T, …]`, zeros where there is none."""
        if self.units is None:
            return x.reshape(len(x), self.n, -1, *x.shape[3:])
        return torch.cat([x, x.new_zeros(len(x), 1, *x.shape[2:])], 1)[:, self.units].flatten(2, 3)


class Unsettled(Exception):
    """What a parameter is used for is not known, or not by sample."""


@dataclass(frozen=True)
class Probes:
    """What tells where units belong.

    Attributes:
        once: what comes back to nodes where all samples count alike.
        counted: what comes back where the i-th of them counts i + 1 times.
        n: samples.
    """

    once: Deltas
    counted: Deltas
    n: int
    _known: dict[tuple[Node, int], Places | None] = field(default_factory=dict)

    def places(self, node: Node, units: int) -> Places | None:
        """Where the units of a node belong; None where they belong to no one sample."""
        key = (node, units)
        if key not in self._known:
            once, counted = self.once[node], self.counted[node]
            assert once is not None
            assert counted is not None
            self._known[key] = _places(once.reshape(units, -1), counted.reshape(units, -1), self.n)
        return self._known[key]


def settled(step: Step, shape: tuple[int, ...], probes: Probes) -> list[Route]:
    """The ways from a step on to uses that belong to samples.

    Args:
        step: what the parameter, or what was made of it, enters.
        shape: of that.
        probes: what came back.

    Raises:
        Unsettled: there is a use that is unknown, or where samples are mixed.
    """
    if passes(step.node):
        return _onward(step, shape, passed(step.node, shape), probes)
    once = probes.once[step.node]
    if once is None:
        return []  # nothing comes back
    use = use_of(step.node, step.place, shape)
    if use is not None:
        places = probes.places(step.node, use.units(once))
        if places is not None:
            return [Route((), step, use, places, shape)] if places.any else []
    return _onward(step, shape, tuple(once.shape), probes)


def _onward(step: Step, shape: tuple[int, ...], made: tuple[int, ...], probes: Probes) -> list[Route]:
    """The ways on from a step that makes something of another shape."""
    if not step.onward:
        raise Unsettled
    onward = [route for s in step.onward for route in settled(s, made, probes)]
    return [route._replace(chain=(Link(step, shape), *route.chain)) for route in onward]


def _places(once: Tensor, counted: Tensor, n: int) -> Places | None:
    """By what came back to units, `[U, d]`."""
    units, alive = torch.arange(len(once), device=once.device), (once != 0).any(1)
    for own in _guesses(once, counted, units, n):
        bound = max(_SAME, 2 * torch.finfo(once.dtype).eps ** 0.5)
        if n == 1 or (counted - (own + 1)[:, None] * once).norm() <= bound * counted.norm():
            break
    else:
        return None
    if alive.all() and len(once) % n == 0 and torch.equal(own, units // (len(once) // n)):
        return Places(n, None)
    own, order = own[alive].sort(stable=True)
    counts = own.bincount(minlength=n)
    index = torch.full((n, int(counts.max())), len(once), device=once.device)
    index[own, torch.arange(len(own), device=own.device) - (counts.cumsum(0) - counts)[own]] = units[alive][order]
    return Places(n, index)


def _guesses(once: Tensor, counted: Tensor, units: Tensor, n: int) -> Iterator[Tensor]:
    """To which samples units may belong: one sample after another, in turns, or what the weights say."""
    if len(units) % n == 0:
        yield units // (len(units) // n)
        yield units % n
    ratio = torch.linalg.vecdot(counted, once) / torch.linalg.vecdot(once, once)
    yield ratio.nan_to_num(1.0, 1.0, 1.0).round().long().clamp(1, n) - 1
