"""Derivatives of a model's outputs by its parameters, one for each input, or what they are made of.

One call of the model on a batch, and a way back for each combination of outputs. Which sample of the batch a number
belongs to is found by trying: where the way back of sample i is weighted with i + 1, so must be all that belongs to it.
That holds for any layout of samples and tokens, and nowhere where samples are mixed. What is not explained so has its
derivatives from autograd, input by input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, call, rows
from layerwright.core.tangent.factors import AsRows, factors
from layerwright.core.tangent.graph import Step, reached, steps
from layerwright.core.tangent.routes import Deltas, Probes, Route, Unsettled, settled
from layerwright.core.trace import tensors
from layerwright.maths.tangent import Factor

Read = Callable[[Any], Tensor]
# How far an output may be from that of its input alone, as a share of the largest.
ALONE = 1e-3


class Recorded(NamedTuple):
    """Of some inputs and combinations of outputs.

    Attributes:
        factors: derivatives, or what they are made of, by parameter.
        back: bytes that came back to make them.
    """

    factors: dict[str, Factor]
    back: int


class Recorder:
    """A model with the parameters that count, ready to be called.

    Attributes:
        parameters: by name, each once, with gradients on.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], read: Read) -> None:
        """A model in evaluation mode, and what takes outputs `[n, …]` from what it returns."""
        self.model, self.parameters, self._read = model, parameters, read

    def outputs(self, inputs: Inputs, first: int = 0) -> Tensor:
        """The outputs `[n, O]` with their graph.

        Args:
            inputs: a batch.
            first: number of its first input, for messages.

        Raises:
            UserError: the model cannot be called, or gives outputs of which there are no derivatives, or NaN.
        """
        try:
            given = self._read(call(self.model, inputs))
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
            raise UserError(_uncallable(inputs, error)) from error
        n = batch_size(inputs)
        if not isinstance(given, Tensor) or given.ndim == 0 or len(given) != n or not given.numel():
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise UserError(f"got outputs {shape} for {n} inputs; expected one row for each; choose with read=")
        if not given.requires_grad:
            raise UserError(
                f"got outputs of type {given.dtype} that depend on no chosen parameter; expected numbers with a "
                "derivative; choose others with read= or parameters="
            )
        found = given.reshape(n, -1)
        bad = (~found.isfinite()).nonzero()
        if len(bad):
            i, o = bad[0].tolist()
            raise UserError(
                f"output {o} for input {first + i} is {found[i, o].item()}; expected finite numbers; leave that input "
                "out, or repair the weights"
            )
        return (found if found.itemsize >= 4 else found.float()).clone()  # an operation of its own to start from

    def record(self, f: Tensor, inputs: Inputs, weights: Tensor, as_rows: AsRows) -> Recorded:
        """Derivatives of combinations of outputs, for each input.

        Args:
            f: what `outputs` gave.
            inputs: of that batch, n of them.
            weights: of the outputs in each combination, `[K, O]`.
            as_rows: whether the derivatives themselves are wanted, where there is a choice.

        Raises:
            UserError: the outputs for an input depend on the inputs beside it.
        """
        found = steps(f, self.parameters)
        nodes = list(dict.fromkeys(node for some in found.values() for step in some for node in reached(step)))
        backs = _backs(f, nodes, weights)
        with torch.no_grad():
            routes, unknown = self._routes(found, _probes(f, weights, backs))
            made = factors(routes, self.parameters, as_rows, backs)
            made |= self._one_by_one(unknown, inputs, weights, f.detach())
        return Recorded(made, sum(deltas.nbytes for deltas in backs.values() if deltas is not None))

    def _routes(self, found: Mapping[str, Sequence[Step]], probes: Probes) -> tuple[dict[str, list[Route]], list[str]]:
        """How each parameter is used, and the names of those of which that is not known."""
        routes: dict[str, list[Route]] = {}
        unknown = []
        for name, some in found.items():
            shape = tuple(self.parameters[name].shape)
            try:
                routes[name] = [route for step in some for route in settled(step, shape, probes)]
            except Unsettled:
                unknown.append(name)
        return {name: some for name, some in routes.items() if some}, unknown

    def _one_by_one(self, names: Sequence[str], inputs: Inputs, weights: Tensor, together: Tensor) -> dict[str, Factor]:
        """Derivatives by autograd, one input and one combination of outputs after another."""
        if not names:
            return {}
        chosen = [self.parameters[name] for name in names]
        made = [p.new_empty(len(weights), len(together), p.numel(), dtype=together.dtype) for p in chosen]
        for i in range(len(together)):
            with torch.enable_grad():
                f = self.outputs(rows(inputs, slice(i, i + 1)))
            if (f[0] - together[i]).abs().max() > ALONE * together.abs().max():
                raise beside_others(i)
            for k, weight in enumerate(weights):
                found = torch.autograd.grad(f, chosen, weight[None], retain_graph=True, materialize_grads=True)
                for rows_of_one, g in zip(made, found):
                    rows_of_one[k, i] = g.flatten()
        return dict(zip(names, made))


class Saved:
    """Bytes that a graph holds beside parameters; what is held twice counts once."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        """Nothing yet."""
        self._held = {p.untyped_storage().data_ptr(): 0 for p in parameters}
        self._without = set(self._held)

    def add(self, x: Tensor) -> Tensor:
        """For `torch.autograd.graph.saved_tensors_hooks`."""
        place = x.untyped_storage().data_ptr()
        if place not in self._without:
            size = min(x.nbytes, x.untyped_storage().nbytes())
            self._held[place] = max(size, self._held.get(place, 0))
        return x

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self._held.values())


def _backs(f: Tensor, nodes: Sequence[Node], weights: Tensor) -> dict[Node, Tensor | None]:
    """The derivatives of outputs with weights `[K, O]` or `[K, n, O]` by what each node gave, `[K, …]`."""
    if not nodes:
        return {}
    edges = [GradientEdge(node, 0) for node in nodes]
    found = [list(torch.autograd.grad(f, edges, w.expand_as(f), retain_graph=True, allow_unused=True)) for w in weights]
    stacked: dict[Node, Tensor | None] = {}
    for node in reversed(nodes):
        deltas = [one.pop() for one in found]  # those of one node after another are given up
        there = next((delta for delta in deltas if delta is not None), None)
        stacked[node] = None if there is None else torch.stack([there * 0 if d is None else d for d in deltas])
    return stacked


def _probes(f: Tensor, weights: Tensor, backs: Deltas) -> Probes:
    """What comes back from a mixture of all combinations, where samples count alike, and where the i-th i + 1 times."""
    shares = torch.randn(len(weights), generator=torch.Generator().manual_seed(0)).to(weights)
    once = {node: None if d is None else torch.tensordot(shares.to(d), d, 1) for node, d in backs.items()}
    if len(f) == 1:
        return Probes(once, once, 1)
    mixed = torch.arange(1, len(f) + 1).to(f)[:, None] * (shares @ weights)
    counted = {node: None if d is None else d[0] for node, d in _backs(f, list(backs), mixed[None]).items()}
    return Probes(once, counted, len(f))


def beside_others(i: int) -> UserError:
    """What to say of an input whose outputs change with those beside it in a batch."""
    return UserError(
        f"the outputs for input {i} change with the inputs beside it, so that it has no derivatives of its own; "
        "expected a model that treats inputs one by one; give norms over a batch running statistics"
    )


def _uncallable(inputs: Inputs, error: Exception) -> str:
    shapes = ((str(x.dtype).removeprefix("torch."), ", ".join(map(str, ["n", *x.shape[1:]]))) for x in tensors(inputs))
    given = ", ".join(f"{dtype} [{shape}]" for dtype, shape in shapes)
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"got inputs {given}, which the model cannot be called with ({why}); expected what its forward takes"
