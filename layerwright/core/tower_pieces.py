"""What stands between two steps of a traced call: a number of times, an elementwise function, or a norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from layerwright.core.tower_ops import Elementwise, Norm, Step, Sum
from layerwright.maths.elementwise import elementwise

# Functions that may leave all rows as they are, in another shape or type.
_SHAPES = ("view", "_unsafe_view", "reshape", "clone", "alias", "_to_copy")
_ARITHMETIC = ("mul", "add", "sub", "div", "pow", "getitem", "rsub", "neg")
_TRIED = torch.linspace(-5.03, 5.07, 64, dtype=torch.float64)

Piece = float | Callable[[Tensor], Tensor] | Norm


def name_of(node: fx.Node) -> str:
    """What torch calls a function, without its overload."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


class Pieces:
    """Parts of a traced call, called again on numbers of our own."""

    def __init__(self, graph: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
        """The call, and what each node gave, filled in as it is run."""
        self._values = values
        self._order = list(graph.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._order)}

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any] | None = None) -> Any:
        """What a node gives."""
        found = self._values if values is None else values
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: found[n])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def past_shapes(self, node: fx.Node) -> fx.Node:
        """The node that has the same rows and was there first."""
        while self._same_rows(node):
            node = node.args[0]  # type: ignore[assignment]
        return node

    def longest(self, start: fx.Node, node: fx.Node) -> tuple[fx.Node, Piece] | str:
        """The last node on the way that is such a piece of the first, and on which alone the rest depends.

        Returns:
            the node and what it is of the first; or the functions on the way, where there is none.
        """
        way = self._between(start, node)
        for end in reversed(way):
            if self._fits(start, end) and not self._reaches(node, start, end):
                piece = self._piece(start, end, self._between(start, end))
                if piece is not None:
                    return end, piece
        names = [name for n in way if not self._same_rows(n) and (name := name_of(n).strip("_")) not in _ARITHMETIC]
        return ", ".join(dict.fromkeys(names)) or "a number for each unit"

    def step(self, piece: Piece, source: int) -> Step:
        """A piece as a step after another."""
        if isinstance(piece, Norm):
            return replace(piece, name="layer norm" if piece.centred else "RMS norm", of=(source,))
        if isinstance(piece, float):
            return Sum(f"{piece:.3g} times", (source,), (piece,))
        return Elementwise(getattr(piece, "__name__", "function"), (source,), piece)

    def _same_rows(self, node: fx.Node) -> bool:
        if node.op != "call_function" or name_of(node) not in _SHAPES or not isinstance(node.args[0], fx.Node):
            return False
        x, y = self._values[node.args[0]], self._values[node]
        return y.is_floating_point() and x.shape[-1:] == y.shape[-1:] and x.numel() == y.numel()

    def _fits(self, start: fx.Node, end: fx.Node) -> bool:
        """Whether a node gives as many numbers, as wide, and is more than a shape of another."""
        x, y = self._values[start], self._values[end]
        alike = isinstance(y, Tensor) and x.shape[-1:] == y.shape[-1:] and x.numel() == y.numel()
        return alike and not self._same_rows(end)

    def _between(self, start: fx.Node, node: fx.Node) -> list[fx.Node]:
        """Nodes after the first, up to and with the last, by which the last depends on the first, in their order."""
        after = self._order[self._place[start] + 1 : self._place[node] + 1]
        reached = {start}
        for n in after:
            if any(m in reached for m in n.all_input_nodes):
                reached.add(n)
        needed = {node}
        for n in reversed(after):
            if n in needed:
                needed.update(n.all_input_nodes)
        return [n for n in after if n in reached and n in needed]

    def _reaches(self, node: fx.Node, start: fx.Node, past: fx.Node) -> bool:
        """Whether a node depends on the first other than through one between."""
        seen, open_ = {past}, [node]
        while open_:
            n = open_.pop()
            if n is start:
                return True
            if n not in seen:
                seen.add(n)
                open_ += n.all_input_nodes
        return False

    def _piece(self, start: fx.Node, end: fx.Node, way: list[fx.Node]) -> Piece | None:
        def again(x: Tensor, constant: Callable[[Any], Any]) -> Tensor:
            found = {start: x}
            for n in way:
                values = _Beside(found, self._values, constant)
                found[n] = found[n.args[0]] if self._same_rows(n) else self.call(n, values)  # type: ignore[index]
            return found[end]

        names = [name for n in way if not self._same_rows(n) and (name := name_of(n).strip("_")) not in _ARITHMETIC]
        name = "-".join(dict.fromkeys(names)) or "polynomial"
        try:
            function = elementwise(lambda x: again(x.clone(), _one_number), name)
            factor = float(function(_TRIED.new_ones(1)))
            if torch.allclose(function(_TRIED), factor * _TRIED, rtol=1e-6, atol=0.0):
                return factor
            function.__name__ = name
            return function
        except ValueError:
            pass
        try:
            found = find_norm(lambda x: again(x, _double), self._values[start].shape)
        except (RuntimeError, IndexError, TypeError):
            return None
        return None if found is None else Norm("", (), *found)


class _Beside(dict):
    """Values found again, and constants of the call beside them."""

    def __init__(self, found: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any], constant: Callable[[Any], Any]):
        super().__init__(found)
        self._values, self._constant = values, constant

    def __missing__(self, node: fx.Node) -> Any:
        return self._constant(self._values[node])


def _one_number(x: Any) -> Any:
    """A constant that does not differ from unit to unit, as one number."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    if x.numel() != 1 and not (x == x.flatten()[0]).all():
        raise ValueError("it takes another number for each unit")
    return x.detach().flatten()[0].double().cpu()


def _double(x: Any) -> Any:
    return x.detach().double().cpu() if isinstance(x, Tensor) and x.is_floating_point() else x


def find_norm(function: Callable[[Tensor], Tensor], shape: torch.Size) -> tuple[float, float, bool] | None:
    """(ε, scale, whether the mean is taken off) of a function of rows that is a norm, whatever it is made of.

    At inputs s x a norm multiplies by c/√(s² m + ε), m the mean square of x: two sizes s give c and ε, and all else is
    checked.

    Args:
        function: of float64 tensors.
        shape: of its input.

    Example:
        >>> found = find_norm(lambda x: torch.nn.functional.layer_norm(x, (6,), eps=0.5), (2, 6))
        >>> found is not None and [round(float(x), 6) for x in found]
        [0.5, 1.0, 1.0]
    """
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.25
    large, small = 1.0, 1e-2
    for centred in (False, True):
        base = x - x.mean(-1, keepdim=True) if centred else x
        square = base.square().mean(-1)
        factors = [(function(s * x) * base).mean(-1) / (s * square) for s in (large, small)]
        inverse = [f.square().reciprocal() for f in factors]
        scale = (square * (large**2 - small**2) / (inverse[0] - inverse[1])).sqrt() * factors[0].sign()
        eps = (inverse[1] * scale.square() - small**2 * square).clamp_min(0.0)
        found = Norm("", (), float(eps.mean()), float(scale.mean()), centred)
        if all(torch.allclose(function(s * x), found.run(s * x), rtol=1e-6, atol=1e-9) for s in (large, small, 3.0)):
            return found.eps, found.scale, centred
    return None
