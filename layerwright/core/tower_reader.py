"""Read a network as a tower of dense layers, elementwise functions, norms and sums, off one call.

The call is traced to the elementary functions of torch, whoever made them: a module, or a line of the network's own. A
product with a constant matrix is a dense layer, and what adds two of them a sum. What else stands between them is
called on numbers of our own, to see whether it acts on each by itself, or is a norm. The steps are run again in the
end: a tower that does not give the numbers of the call is refused, as is all that fits none of these words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, on_device, rows
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.tower_ops import (
    Dense,
    Elementwise,
    Given,
    Norm,
    Reading,
    Step,
    Sum,
    ancestors,
    gaussian,
    last_layers,
    same_weights,
)
from layerwright.core.tower_pieces import Pieces, name_of
from layerwright.core.tower_trace import answer, no_tower, traced
from layerwright.core.trace import tensors
from layerwright.maths.similarity import relative_error

# Rows of the inputs that are looked at.
ROWS = 32
_TOLERANCE = 1e-3
# Functions, by parts of their names, after which no theory here goes on, whatever they read.
_NEVER = {
    "convolution": "a convolution", "bmm": "a product of matrices for each input, as in attention",
    "attention": "attention", "lstm": "a recurrent layer", "gru": "a recurrent layer", "rnn": "a recurrent layer",
    "detach": "detach, which keeps gradients out",
}  # fmt: skip
_INPUTS = -1


def read_tower(model: nn.Module, inputs: Inputs, seed: int = 0) -> Reading:
    """Read a network, in evaluation mode, as a tower.

    Args:
        model: any module; DDP and `torch.compile` wrappers are looked through.
        inputs: one batch, as the model takes it. What comes before the first dense layer prepares its rows, of which 32
            are looked at.
        seed: of the directions along which gradients are taken.

    Raises:
        UserError: it is no such tower; the message says where, in one line.
    """
    model = unwrap(model)
    given = on_device(rows(inputs, slice(0, ROWS)), model)
    if not batch_size(given):
        raise UserError("got no inputs; expected a batch of at least one")
    with undisturbed(model):
        with torch.no_grad():
            expected = answer(model, given)
            graph = traced(model, given)
        reader = _Reader(model, graph, list(tensors(given)))
        if expected is None or not _close(reader.output, expected):
            raise no_tower("two calls of it on the same inputs differ")
        return reader.reading(seed)


def _close(x: Tensor, y: Tensor) -> bool:
    tolerance = max(_TOLERANCE, 8 * torch.finfo(y.dtype).eps) if y.is_floating_point() else 0.0
    return x.shape == y.shape and relative_error(x.detach().double(), y.detach().double()) <= tolerance


class _Reader:
    """One traced call.

    Every node that depends on the inputs has the steps that it was made of: itself for a dense layer or a sum, else
    those of what it reads; `_INPUTS` where no step came before it. `_why` are the nodes at which the tower ends.
    """

    def __init__(self, model: nn.Module, graph: fx.GraphModule, arguments: Sequence[Tensor]) -> None:
        self.steps: list[Step] = []
        self._graph = graph
        named = ((name.removesuffix(".weight").removesuffix(".bias"), p) for name, p in model.named_parameters())
        self._names = {p.data_ptr(): name for name, p in named if p.numel()}
        self._values: dict[fx.Node, Any] = {}
        self._pieces = Pieces(graph, self._values)
        self._sources: dict[fx.Node, frozenset[int]] = {}
        self._nodes: list[fx.Node] = []  # of the steps
        self._numbers: dict[fx.Node, int] = {}  # and back
        self._why: dict[fx.Node, str] = {}
        with torch.enable_grad():
            self._run(iter(arguments))

    @property
    def output(self) -> Tensor:
        """What the traced call gave."""
        return self._values[self._end]

    # The call, node by node

    def _run(self, arguments: Iterator[Tensor]) -> None:
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                self._values[node], self._sources[node] = next(arguments), frozenset({_INPUTS})
            elif node.op == "get_attr":
                self._values[node] = getattr(self._graph, str(node.target))
            elif node.op == "call_function":
                self._values[node] = self._pieces.call(node)
                self._follow(node)
            else:
                (self._end,) = node.all_input_nodes

    def _follow(self, node: fx.Node) -> None:
        """Decide what a function makes of the data."""
        read = [n for n in node.all_input_nodes if n in self._sources]
        if not read:
            return
        self._sources[node] = reduce(frozenset.union, (self._sources[n] for n in read))
        name, two = name_of(node), [n for n in node.args if isinstance(n, fx.Node) and n in self._sources]
        if why := next((self._why[n] for n in read if n in self._why), None):
            self._why[node] = why
        elif what := next((what for part, what in _NEVER.items() if part in name), None):
            self._why[node] = f"it has {what}"
        elif name in ("mm", "addmm") and read == [node.args[-2]]:
            self._dense(node)
        elif name == "add" and self._biased(node):
            pass
        elif name in ("add", "sub") and len(two) == 2 and all(len(self._sources[n]) == 1 for n in two):
            if len(self._sources[node]) == 2:
                self._sum(node, two)
        elif len(self._sources[node]) > 1:
            self._why[node] = f"{name.strip('_')} joins {self._titles(node)}"

    def _dense(self, node: fx.Node) -> None:
        x, matrix = node.args[-2:]
        bias = self._values[node.args[0]].detach() if len(node.args) == 3 else None  # type: ignore[index]
        weight = self._values[matrix].detach().T  # type: ignore[index]
        if any(node.kwargs.get(key, 1) != 1 for key in ("alpha", "beta")) or (bias is not None and bias.ndim != 1):
            self._why[node] = "it has a dense layer whose terms come times a number"
        elif (source := self._operand(x, node)) is not None:  # type: ignore[arg-type]
            self._add(node, Dense(self._title(weight, bias), (source,), weight, bias))

    def _title(self, *parameters: Tensor | None) -> str:
        """The path of the layer that holds the parameters."""
        known = (self._names.get(x.data_ptr()) for x in parameters if x is not None)
        return next(filter(None, known), f"dense {sum(isinstance(s, Dense) for s in self.steps)}")

    def _biased(self, node: fx.Node) -> bool:
        """Whether a bias is added to a dense layer that has none; then it is one with it."""
        for n, other in (node.args[:2], node.args[1::-1]):
            number = self._numbers.get(self._pieces.past_shapes(n)) if isinstance(n, fx.Node) else None
            layer = None if number is None else self.steps[number]
            bias = self._values[other] if isinstance(other, fx.Node) and other not in self._sources else None
            if isinstance(layer, Dense) and layer.bias is None and isinstance(bias, Tensor):
                if bias.shape != layer.weight.shape[:1] or node.kwargs:
                    return False
                self._add(node, Dense(layer.name, layer.of, layer.weight, bias.detach()))
                return True
        return False

    def _sum(self, node: fx.Node, pair: Sequence[fx.Node]) -> None:
        sign = (1.0 if name_of(node) == "add" else -1.0) * float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        if self._values[pair[0]].shape != self._values[pair[1]].shape:
            self._why[node] = "it has a sum that repeats what it adds"
            return
        one, two = (self._part(n, node) for n in pair)
        if one is None or two is None:
            return
        for number, _ in (one, two):
            if isinstance(self.steps[number], Elementwise):
                self._why[node] = f"a sum adds {self.steps[number].name}: a branch has to end in a dense layer"
                return
        if last_layers(self.steps, one[0]) & last_layers(self.steps, two[0]):
            self._why[node] = f"a sum adds to {self._titles(node)} what came of the same layer"
            return
        last = max(one, two, key=lambda part: (not isinstance(self.steps[part[0]], Given), part[0]))
        title = f"sum after {self.steps[last[0]].name}"
        self._add(node, Sum(title, (one[0], two[0]), (one[1], sign * two[1])))

    def _add(self, node: fx.Node, step: Step) -> int:
        number = self._numbers[node] = len(self.steps)
        self.steps.append(step)
        self._nodes.append(node)
        self._sources[node] = frozenset({number})
        if isinstance(step, (Dense, Sum)) and not self._values[node].requires_grad:
            self._values[node].requires_grad_()
        return number

    # What stands between two steps

    def _operand(self, node: fx.Node, at: fx.Node) -> int | None:
        """The step that is read at a node; None, and it is said at another why, where there is none."""
        part = self._part(node, at)
        if part is None or part[1] == 1:
            return None if part is None else part[0]
        return self._add(node, Sum(f"{part[1]:.3g} × {self.steps[part[0]].name}", part[:1], part[1:]))

    def _part(self, node: fx.Node, at: fx.Node) -> tuple[int, float] | None:
        """The step that is read at a node, and the number that it comes times; or None."""
        node = self._pieces.past_shapes(node)
        if node in self._numbers:
            return self._numbers[node], 1.0
        if len(self._sources[node]) > 1:
            self._why[at] = f"{name_of(node).strip('_')} joins {self._titles(node)}"
            return None
        (source,) = self._sources[node]
        if source == _INPUTS:
            return self._add(node, Given("inputs")), 1.0
        start = self._nodes[source]
        while start is not node:
            found = self._pieces.longest(start, node)
            if isinstance(found, str):
                self._why[at] = f"{found} stands after {self.steps[self._numbers[start]].name}"
                return None
            end, piece = found
            if isinstance(piece, float) and end is node:
                return self._numbers[start], piece
            if (why := self._unfit(self._numbers[start], piece)) is not None:
                self._why[at] = why
                return None
            if end not in self._numbers:
                self._add(end, self._pieces.step(piece, self._numbers[start]))
            start = end
        return self._numbers[start], 1.0

    def _unfit(self, number: int, piece: Any) -> str | None:
        """Why a function of a step has no limit that is known here."""
        step = self.steps[number]
        if gaussian(self.steps, number) or isinstance(piece, float) or (isinstance(piece, Norm) and not piece.centred):
            return None
        what = "a layer norm" if isinstance(piece, Norm) else "an activation"
        return f"{what} acts on {step.name}, whose units are not Gaussian whatever the width"

    def _titles(self, node: fx.Node) -> str:
        return " and ".join(
            "the inputs" if number == _INPUTS else self.steps[number].name for number in sorted(self._sources[node])
        )

    # The result

    def reading(self, seed: int) -> Reading:
        """The tower with its numbers.

        Raises:
            UserError: the call was none.
        """
        if self._end in self._why:
            raise no_tower(self._why[self._end])
        (end,) = self._sources[self._end] if len(self._sources.get(self._end, ())) == 1 else (None,)
        if end in (None, _INPUTS):
            raise no_tower("it has no dense layer")
        kept = sorted(ancestors(self.steps, end))
        self._check(kept)
        place = {old: new for new, old in enumerate(kept)}
        steps = [replace(self.steps[old], of=tuple(place[n] for n in self.steps[old].of)) for old in kept]
        values = {place[n]: _rows(self._values[self._nodes[n]]) for n in kept if _measured(self.steps[n])}
        if len({len(x) for x in values.values()}) > 1:
            raise no_tower("its layers see other numbers of rows")
        last = self._nodes[end]
        notes = [] if self._pieces.past_shapes(self._end) is last else [f"what follows {steps[-1].name} is left out"]
        gradients = {place[n]: _rows(g) for n, g in self._gradients(kept, end, seed).items()}
        chosen = torch.linspace(0, len(values[place[end]]) - 1, ROWS).round().long().unique()
        return Reading(
            steps,
            {n: x.detach()[chosen].double().cpu() for n, x in values.items()},
            {n: g[chosen].double().cpu() for n, g in gradients.items()},
            notes,
        )

    def _check(self, kept: Sequence[int]) -> None:
        """Run the steps on the values of those that they read, and hold layers to be independent."""
        for n in kept:
            step = self.steps[n]
            given = [_rows(self._values[self._nodes[k]].detach()) for k in step.of]
            if given and not _close(step.run(*given), _rows(self._values[self._nodes[n]])):
                raise no_tower(f"what was read of {step.name} does not give its numbers")
        if (same := same_weights([self.steps[n] for n in kept])) is not None:
            raise no_tower(f"{same}: weights that are the same are not independent")

    def _gradients(self, kept: Sequence[int], end: int, seed: int) -> dict[int, Tensor]:
        """Derivatives along one random direction a row, by number of the step."""
        last = self._values[self._nodes[end]]
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(last.shape, generator=generator).to(last)
        direction = direction / direction.norm(dim=-1, keepdim=True)
        chosen = [n for n in kept if isinstance(self.steps[n], (Dense, Sum))]
        by = [self._values[self._nodes[n]] for n in chosen]
        with torch.enable_grad():
            found = torch.autograd.grad(last, by, direction, materialize_grads=True)
        return dict(zip(chosen, found, strict=True))


def _measured(step: Step) -> bool:
    return isinstance(step, (Given, Dense, Sum))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
