"""What a node of autograd's graph does with a parameter: a product, a norm, a look-up, elementwise, or not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from layerwright.core.tangent.graph import kind
from layerwright.maths.patches import patches


class Use(NamedTuple):
    """The derivative by a parameter as a sum over units, each of which belongs to one sample of a batch.

    Attributes:
        back: from K derivatives by what the node gave, `[K, …]`, to those of each unit and the places in it,
            `[K, U, T, d]`; without `read` they are by the parameter, `[K, U, 1, size]`.
        read: what a matrix read, `[U, T, d]`, or numbers of its rows, `[U, T]`; None for a parameter that has no such
            form.
        left: whether the derivatives are along the rows of the matrix, and what it read along its columns.
        groups: of a convolution.
        units: how many units a derivative by what the node gave has; they are along its leading axes.
    """

    back: Callable[[Tensor], Tensor]
    read: Callable[[], Tensor] | None = None
    left: bool = True
    groups: int = 1
    units: Callable[[Tensor], int] = len


def use_of(node: Node, place: int, shape: Sequence[int]) -> Use | None:
    """What a node does with an input of a shape; None where that is not known."""
    found = _KNOWN.get(kind(node))
    return None if found is None else found(node, place, tuple(shape))


def _addmm(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    if place == 0:
        return _elementwise(shape, lambda: node._saved_beta)
    return _product(lambda: node._saved_mat1, node._saved_alpha) if place == 2 else None


def _mm(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    return _product(lambda: node._saved_self, 1) if place == 1 else None


def _product(x: Callable[[], Tensor], scale: float) -> Use:
    """Of x W, with W as the product has it: its rows meet the columns of x."""

    def read() -> Tensor:
        rows = x().unsqueeze(1)
        return rows if scale == 1 else scale * rows

    return Use(lambda delta: delta.unsqueeze(2), read, left=False)


def _convolution(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    if place == 2:
        return Use(lambda delta: delta.flatten(3).sum(3).unsqueeze(2))
    if place != 1 or node._saved_transposed:
        return None

    def read() -> Tensor:
        options = (node._saved_stride, node._saved_padding, node._saved_dilation)
        return patches(node._saved_input, shape[2:], *options)

    return Use(lambda delta: delta.flatten(3).mT, read, groups=node._saved_groups)


def _embedding(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    if node._saved_scale_grad_by_freq:
        return None
    numbers = node._saved_indices.reshape(-1, 1)
    counted = (numbers != node._saved_padding_idx).unsqueeze(-1)
    n = len(numbers)
    return Use(lambda d: d.reshape(len(d), n, 1, -1) * counted, lambda: numbers, left=False, units=lambda d: n)


def _layer_norm(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    if place == 2:
        return _elementwise(shape)
    return _elementwise(shape, lambda: (node._saved_input - node._saved_result1) * node._saved_result2)


def _batch_norm(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    shape = (*shape, *[1] * (node._saved_input.ndim - 2))  # along the second axis
    if place == 2:
        return _elementwise(shape)

    def normed() -> Tensor:
        mean, variance = (v.view(shape) for v in (node._saved_running_mean, node._saved_running_var))
        return (node._saved_input - mean) * (variance + node._saved_eps).rsqrt()

    return None if node._saved_training else _elementwise(shape, normed)


def _group_norm(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    shape = (*shape, *[1] * (node._saved_input.ndim - 2))
    if place == 2:
        return _elementwise(shape)

    def normed() -> Tensor:
        x, groups = node._saved_input, (node._saved_N, node._saved_group, 1)
        mean, scale = (v.view(groups) for v in (node._saved_result1, node._saved_result2))
        return ((x.reshape(*groups[:2], -1) - mean) * scale).view_as(x)

    return _elementwise(shape, normed)


def _multiplied(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    if (node._saved_self if place else node._saved_other) is None:
        return None
    return _elementwise(shape, lambda: node._saved_self if place else node._saved_other)


def _added(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    return _elementwise(shape, lambda: node._saved_alpha if place else 1)


def _subtracted(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    return _elementwise(shape, lambda: -node._saved_alpha if place else 1)


def _expanded(node: Any, place: int, shape: tuple[int, ...]) -> Use | None:
    return _elementwise(shape)


def _elementwise(shape: tuple[int, ...], factor: Callable[[], Tensor | float] = lambda: 1) -> Use:
    """Of what is spread over the axes that it lacks and times a factor: units are places along the leading of those."""

    def lead(delta: Tensor) -> int:
        return next((k for k, n in enumerate(shape, delta.ndim - len(shape)) if n != 1), delta.ndim)

    def units(delta: Tensor) -> int:
        return math.prod(delta.shape[: lead(delta)])

    def back(deltas: Tensor) -> Tensor:
        size, axes, times = units(deltas[0]), lead(deltas[0]), factor()
        deltas = deltas * times if isinstance(times, Tensor) or times != 1 else deltas
        own = deltas.shape[axes + 1 :]
        like = shape[len(shape) - len(own) :] if own else ()
        units_of_all = deltas.reshape(len(deltas) * size, *own)
        return units_of_all.sum_to_size(len(units_of_all), *like).reshape(len(deltas), size, 1, -1)

    return Use(back, units=units)


_KNOWN: dict[str, Callable[[Any, int, tuple[int, ...]], Use | None]] = {
    "Addmm": _addmm,
    "Mm": _mm,
    "Convolution": _convolution,
    "Embedding": _embedding,
    "NativeLayerNorm": _layer_norm,
    "NativeBatchNorm": _batch_norm,
    "NativeGroupNorm": _group_norm,
    "Mul": _multiplied,
    "Add": _added,
    "Sub": _subtracted,
    "Expand": _expanded,
}
