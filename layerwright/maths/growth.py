"""A matrix in a larger one: where its numbers go, and how copies of them compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

# The lengths of the parts of an axis that lie one after the other, by axis; each part grows on its own.
Parts = Mapping[int, Sequence[int]]


def sources(parts: Sequence[int], factor: int) -> Tensor:
    """For each place of a longer axis the old place that it repeats.

    Example:
        >>> sources([2, 1], 2).tolist()
        [0, 1, 0, 1, 2, 2]
    """
    starts = [sum(parts[:n]) for n in range(len(parts))]
    return torch.cat([start + torch.arange(n * factor) % n for start, n in zip(starts, parts)])


def repeated(weight: Tensor, parts: Parts, factor: int, reads: int | None = None) -> Tensor:
    """Copies side by side, and divided by their number along the axis that reads: W'[a, b] = W[g(a), g(b)] / f.

    With x' = x[g(·)] this gives W' x' = (W x)[g(·)]: what was computed once is computed f times.

    Args:
        weight: any tensor.
        parts: lengths of the parts of each axis that grows.
        factor: f.
        reads: the axis along which it is multiplied with what it reads; None where it multiplies nothing.

    Example:
        >>> repeated(torch.tensor([[1.0, 2.0]]), {0: [1], 1: [2]}, 2, reads=1).tolist()
        [[0.5, 1.0, 0.5, 1.0], [0.5, 1.0, 0.5, 1.0]]
    """
    for axis, lengths in parts.items():
        weight = weight.index_select(axis, sources(lengths, factor).to(weight.device))
    return weight / factor if reads in parts else weight.clone()


def cornered(weight: Tensor, parts: Parts, factor: int, rest: Tensor) -> Tensor:
    """The old numbers where they are read and written as before, and others in the new places.

    Args:
        weight: any tensor.
        parts: lengths of the parts of each axis that grows; of each the old numbers come first.
        factor: how many times as long each becomes.
        rest: the larger tensor, whose other numbers stay.

    Example:
        >>> cornered(torch.tensor([1.0, 2.0]), {0: [1, 1]}, 2, torch.zeros(4)).tolist()
        [1.0, 0.0, 2.0, 0.0]
    """
    made = rest.to(weight).clone()
    ways = [_slices(parts.get(axis, [n]), factor if axis in parts else 1) for axis, n in enumerate(weight.shape)]
    for places in product(*ways):
        made[tuple(new for _, new in places)] = weight[tuple(old for old, _ in places)]
    return made


def _slices(parts: Sequence[int], factor: int) -> list[tuple[slice, slice]]:
    """Where each part is, and where it goes."""
    starts = [sum(parts[:n]) for n in range(len(parts))]
    return [(slice(start, start + n), slice(start * factor, start * factor + n)) for start, n in zip(starts, parts)]


def longer(shape: Sequence[int], parts: Parts, factor: int) -> tuple[int, ...]:
    """The shape of the larger tensor.

    Example:
        >>> longer((2, 3), {1: [3]}, 4)
        (2, 12)
    """
    return tuple(n * factor if axis in parts else n for axis, n in enumerate(shape))
