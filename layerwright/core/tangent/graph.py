"""Where the parameters of a model enter one call of it, read off the graph of autograd.

No hook and no table of modules: whatever a module is called, its products, norms and look-ups are a few kinds of nodes
of the graph, and no use of a parameter is missed, tied weights, repeated modules and functions without one included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

# Kinds of nodes that may only make another tensor of a parameter: turned, cast, scaled, looked up for all inputs alike.
_TURNS = ("T", "Transpose", "Permute")
_SHAPES = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Expand", "Slice", "Select", "Index", "Clone")
_VALUES = ("ToCopy", "Embedding", "Mul", "Add", "Sub", "Div", "Neg", "Exp", "Softplus", "Sigmoid", "Tanh")
_LINKS = frozenset((*_TURNS, *_SHAPES, *_VALUES))
_DEPTH = 8
_Readers = dict[Node, list[tuple[Node, int]]]


class Step(NamedTuple):
    """A place where a parameter, or what was made of it, enters a node.

    Attributes:
        node: of the graph.
        place: which of its inputs.
        onward: where the node's output goes on, if the node may be one that only makes another tensor of a parameter.
    """

    node: Node
    place: int
    onward: tuple[Step, ...]


def kind(node: Node) -> str:
    """`Addmm` of AddmmBackward0."""
    return node.name().partition("Backward")[0]


def steps(root: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, tuple[Step, ...]]:
    """Where each parameter enters the computation of a tensor; those that do not are left out.

    Args:
        root: made by an operation of its own.
        parameters: by name, each once, that autograd follows.
    """
    assert root.grad_fn is not None
    nodes = list(_upwards(root.grad_fn))
    names = {id(p): name for name, p in parameters.items()}
    held = {node: id(getattr(node, "variable", None)) for node in nodes}
    leaves = {node: names[known] for node, known in held.items() if known in names}
    aside = set(leaves)  # nodes that no input's data go into, as far as the graph says
    readers: _Readers = {}
    for node in nodes:
        inputs = [(k, below) for k, (below, _) in enumerate(node.next_functions) if below is not None]
        for k, below in inputs:
            readers.setdefault(below, []).append((node, k))
        if kind(node) in _LINKS and all(below in aside for _, below in inputs):
            aside.add(node)
    found = {name: _onward(leaf, readers, aside, _DEPTH) for leaf, name in leaves.items()}
    return {name: found[name] for name in parameters if name in found}


def _onward(node: Node, readers: _Readers, aside: set[Node], depth: int) -> tuple[Step, ...]:
    """The places that a node's output enters."""
    # Not a function inside `steps`: one that calls itself would hold the graph until the collector comes.
    return tuple(
        Step(reader, k, _onward(reader, readers, aside, depth - 1) if depth and reader in aside else ())
        for reader, k in readers.get(node, ())
    )


def reached(step: Step) -> Iterator[Node]:
    """The nodes of a step and of all that go on from it, but those that only turn or cast."""
    if not passes(step.node):
        yield step.node
    for s in step.onward:
        yield from reached(s)


def turned(chain: Sequence[Step], parameter: Tensor) -> bool | None:
    """Whether a matrix has rows and columns exchanged after these steps; None where they do more than that."""
    names = [kind(step.node) for step in chain]
    if any(name not in (*_TURNS, "ToCopy") for name in names) or (set(names) & set(_TURNS) and parameter.ndim != 2):
        return None
    return sum(name in _TURNS and not _straight(step.node) for name, step in zip(names, chain)) % 2 == 1


def passes(node: Node) -> bool:
    """Whether a node does nothing but turn or cast."""
    return kind(node) in (*_TURNS, "ToCopy")


def passed(node: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape behind a node of those, by that before it."""
    axes = list(range(len(shape)))
    match kind(node):
        case "T":
            axes.reverse()
        case "Transpose":
            a, b = _signed(node._saved_dim0), _signed(node._saved_dim1)
            axes[a], axes[b] = axes[b], axes[a]
        case "Permute":
            axes = [axes[_signed(d)] for d in node._saved_dims]
    return tuple(shape[axis] for axis in axes)


def _signed(axis: int) -> int:
    """An axis as it was given: autograd keeps −1 as 2⁶⁴ − 1."""
    return axis - 2**64 if axis >= 2**63 else axis


def _straight(node: Node) -> bool:
    return passed(node, (0, 1)) == (0, 1)


def _upwards(root: Node) -> Iterator[Node]:
    """All nodes below one, each after those that go into it."""
    seen, waiting = {root}, [(root, iter(root.next_functions))]
    while waiting:
        node, rest = waiting[-1]
        below = next((n for n, _ in rest if n is not None and n not in seen), None)
        if below is None:
            yield node
            waiting.pop()
        else:
            seen.add(below)
            waiting.append((below, iter(below.next_functions)))
