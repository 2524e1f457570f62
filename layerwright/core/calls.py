"""Arguments of a block's call with places left open, for the stream and for what other blocks hand on beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.trace import same, tensors


class _Stream:
    """Stands for the state that the block was called with."""


class Extra(NamedTuple):
    """Stands for a tensor that block application `k` returned beside the stream, the `place`-th of them."""

    k: int
    place: int


_STREAM = _Stream()


def structure(output: Any) -> Any:
    """What a block returned, with its first tensor, the stream, left open."""
    if isinstance(output, Tensor):
        return _STREAM
    if isinstance(output, (tuple, list)) and output:
        return (structure(output[0]), *output[1:])
    raise UserError(f"a block returned {type(output).__name__}; expected a tensor or a tuple that starts with one")


def beside(structure: Any) -> list[Tensor]:
    """The tensors that a block returned beside the stream."""
    return list(tensors(structure))


def exchanged(structure: Any, new: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with other tensors for those that lie beside the stream, in the order of `beside`."""
    if isinstance(structure, dict):
        return {key: exchanged(value, new) for key, value in structure.items()}
    if isinstance(structure, (tuple, list)):
        return type(structure)(exchanged(value, new) for value in structure)
    return new(structure) if isinstance(structure, Tensor) else structure


def leave_open(x: Any, stream: Tensor, extras: Mapping[int, Extra]) -> Any:
    """Arguments without the stream, and without the tensors of `extras`, which go by their identity."""
    if isinstance(x, dict):
        return {key: leave_open(value, stream, extras) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(leave_open(value, stream, extras) for value in x)
    if not isinstance(x, Tensor):
        return x
    return _STREAM if same(x, stream) else extras.get(id(x), x)


def put_in(x: Any, state: Tensor, structures: Sequence[Any] = ()) -> Any:
    """Arguments, or a structure, with a state in the open place and each `Extra` looked up in what blocks returned."""
    if isinstance(x, Extra):
        return beside(structures[x.k])[x.place]
    if isinstance(x, dict):
        return {key: put_in(value, state, structures) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(put_in(value, state, structures) for value in x)
    return state if x is _STREAM else x


def extras_in(x: Any) -> set[Extra]:
    """What arguments take from other blocks beside the stream."""
    if isinstance(x, Extra):
        return {x}
    items = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return {extra for item in items for extra in extras_in(item)}


def alike(a: Any, b: Any) -> bool:
    """Whether two nests of arguments are the same, tensors bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, Extra) or isinstance(b, Extra):
        return bool(type(a) is type(b) and a == b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same(a, b)
    return a is b or type(a) is type(b)
