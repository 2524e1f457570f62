"""The tangent kernel of a model of finite width: inner products of the derivatives of its outputs by its parameters.

Inputs and outputs are taken a tile at a time: what was recorded of tiles is kept as far as memory holds it, the rest is
recorded again where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, rows
from layerwright.core.memory import available_memory
from layerwright.core.tangent.kernel import TangentKernel
from layerwright.core.tangent.model import differentiable, given, logits
from layerwright.core.tangent.plan import Task, at_once, planned
from layerwright.core.tangent.record import ALONE, Read, Recorder, Saved, beside_others
from layerwright.maths import tangent
from layerwright.maths.freed import keep_freed
from layerwright.maths.lanczos import with_error

# What each choice of outputs asks of the products.
FORMS = {"full": "full", "each": "each", "trace": "trace", "projection": "each"}
MEMORY = 2**30


class Choice(NamedTuple):
    """What of a kernel is computed; the words are those of `verbs/tangents.py`."""

    outputs: str = "full"
    diagonal: bool = False
    by_layer: bool = False
    parameters: Sequence[str] | None = None
    projections: int = 8
    seed: int = 0
    memory: int = MEMORY


def tangent_kernel(
    model: nn.Module, inputs: Any, inputs2: Any = None, choice: Choice | None = None, read: Read = logits
) -> TangentKernel:
    """Compute a kernel.

    Args:
        model: any module.
        inputs: N of them.
        inputs2: M others; None for the first.
        choice: what of it.
        read: takes outputs `[n, …]` from what the model returns.

    Raises:
        UserError: the model, the inputs or the choice cannot be used; the message says what to do.
    """
    choice = choice or Choice()
    _check(choice)
    keep_freed()
    with differentiable(model, choice.parameters) as (module, parameters):
        first = given(inputs, module)
        second = None if inputs2 is None else given(inputs2, module)
        return _Computation(Recorder(module, parameters, read), first, second, choice).run()


def _check(choice: Choice) -> None:
    if choice.outputs not in FORMS:
        raise UserError(f"got outputs={choice.outputs!r}; expected one of {', '.join(FORMS)}")
    for name, least in (("projections", 2), ("memory", 1), ("seed", 0)):
        value = getattr(choice, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"got {name}={value!r}; expected a whole number from {least} on")


_Factors = dict[str, tangent.Factor]


class _Tile(NamedTuple):
    """Some inputs of one of the sets, and some combinations of outputs."""

    inputs: slice
    outputs: slice


class _Computation:
    """One kernel on its way."""

    def __init__(self, recorder: Recorder, first: Inputs, second: Inputs | None, choice: Choice) -> None:
        """Look at one input, and plan."""
        self._recorder, self._first, self._second, self._choice = recorder, first, second, choice
        self._form = FORMS[choice.outputs]
        n = batch_size(first)
        self._sizes = (n, n if second is None else batch_size(second))
        if choice.diagonal and len(set(self._sizes)) > 1:
            raise UserError(f"got {n} inputs and {self._sizes[1]} others; expected as many for a diagonal")
        one, saved = rows(first, slice(0, 1)), Saved(recorder.model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda x: x):
            f = recorder.outputs(one)
        self._f = f.detach()
        self._weights = _signs(choice, f) if choice.outputs == "projection" else None
        self._count = f.shape[1] if self._weights is None else choice.projections
        self._results = self._room()
        task = Task(self._sizes, self._count, self._form, choice.memory, second is None)
        plan = at_once(task, recorder.parameters, saved.bytes)
        if plan is None:
            seen = recorder.record(f, one, torch.randn_like(f), lambda name, uses, shape: False)
            plan = planned(task, seen, recorder.parameters, saved.bytes)
        self._plan = plan

    def run(self) -> TangentKernel:
        """All of it."""
        plan, (n, m), alone = self._plan, self._sizes, self._second is None
        first, second, outputs = _cut(n, plan.inputs), _cut(m, plan.inputs), _cut(self._count, plan.outputs)
        if self._form == "full":  # tiles of all outputs meet
            groups = [outputs]
        else:
            groups = [[some] for some in outputs]
        for some in groups:
            for left, right in [([s], [s]) for s in first] if self._choice.diagonal else [(first, second)]:
                a, b = ([_Tile(s, o) for s in slices for o in some] for slices in (left, right))
                self._meet(a, None if alone else b)
        return self._finished()

    def _meet(self, a: list[_Tile], b: list[_Tile] | None) -> None:
        """All pairs of tiles of the two sets, or of the first with itself."""
        held, second = self._plan.held, self._first if self._second is None else self._second
        for start in range(0, len(a), held):
            kept: list[tuple[_Tile, _Factors]] = []
            for tile in a[start : start + held]:
                kept.append((tile, self._record(self._first, tile)))
                if b is None:
                    self._add(kept, *kept[-1])
            for tile in a[start + held :] if b is None else b:
                self._add(kept, tile, self._record(second, tile))
            del kept

    def _record(self, inputs: Inputs, tile: _Tile) -> _Factors:
        some = rows(inputs, tile.inputs)
        f = self._recorder.outputs(some, tile.inputs.start)
        if f.shape[1] != self._f.shape[1]:
            raise UserError(
                f"got {f.shape[1]} outputs and {self._f.shape[1]} elsewhere; expected as many for each input"
            )
        if inputs is self._first and tile.inputs.start == 0 and (f[0] - self._f[0]).abs().max() > ALONE * f.abs().max():
            raise beside_others(0)
        if self._weights is not None:
            weights = self._weights[tile.outputs]
        else:
            weights = torch.zeros(tile.outputs.stop - tile.outputs.start, f.shape[1]).to(f)
            weights.diagonal(tile.outputs.start).fill_(1.0)
        return self._recorder.record(f, some, weights, self._plan.as_rows).factors

    def _add(self, kept: list[tuple[_Tile, _Factors]], b: _Tile, recorded: _Factors) -> None:
        """What a tile has in common with those that are kept, to the layers it comes from."""
        for a, recorded_before in kept:
            twice = self._second is None and a is not b  # it stands on both sides of the diagonal
            blocks = {layer: self._place(layer, a, b) for layer in self._results}
            if twice:
                blocks = {layer: torch.zeros_like(place) for layer, place in blocks.items()}

            def into(name: str, blocks: dict[str, Tensor] = blocks) -> Tensor:
                return blocks[self._layer(name)]

            tangent.add_products(into, recorded_before, recorded, self._form, self._choice.diagonal)
            for layer, block in blocks.items():
                if not block.sum().isfinite():
                    raise _not_finite(recorded_before, recorded)
                if twice:
                    self._place(layer, a, b).add_(block)
                    self._place(layer, b, a).add_(block.movedim(*_MIRROR[self._form, self._choice.diagonal]))

    def _place(self, layer: str, a: _Tile, b: _Tile) -> Tensor:
        """Where it belongs."""
        axes: dict[str, tuple[slice, ...]] = {
            "full": (a.outputs, a.inputs, b.outputs, b.inputs),
            "each": (a.outputs, a.inputs, b.inputs),
            "trace": (a.inputs, b.inputs),
        }
        found = axes[self._form]
        return self._results[layer][found[: len(found) - self._choice.diagonal]]

    def _room(self) -> dict[str, Tensor]:
        """Zeros for what will be known, with axes in the order of products."""
        (n, m), k = self._sizes, self._count
        shape = {"full": (k, n, k, m), "each": (k, n, m), "trace": (n, m)}[self._form]
        shape = shape[: len(shape) - self._choice.diagonal]
        layers = list(dict.fromkeys(map(self._layer, self._recorder.parameters)))
        needed = math.prod(shape) * self._f.itemsize * len(layers)
        if needed > available_memory():
            raise UserError(
                f"a kernel of {n} × {m} inputs and {self._count} outputs takes {needed / 2**30:.0f} GB; expected what "
                "fits in memory; ask for outputs='trace' or 'projection', or for fewer inputs, or choose some outputs "
                "with read="
            )
        return {layer: self._f.new_zeros(shape) for layer in layers}

    def _layer(self, name: str) -> str:
        return name.rpartition(".")[0] or "(model)" if self._choice.by_layer else ""

    def _finished(self) -> TangentKernel:
        """With inputs before outputs, and what goes over outputs as a mean."""
        layers = list(self._results.values())
        total, error = sum(layers[1:], layers[0]), None
        if self._choice.outputs == "projection":
            total, error = with_error(total)
        final = self._final if self._choice.outputs != "projection" else lambda x: x.mean(0)
        by_layer = {layer: final(x) for layer, x in self._results.items()} if self._choice.by_layer else {}
        return TangentKernel(total if error is not None else final(total), self._choice.outputs, by_layer, error)

    def _final(self, x: Tensor) -> Tensor:
        if self._form == "trace":
            return x / self._count
        return x.movedim(0, -1) if self._form == "each" else x.movedim((0, 2), (-2, -1))


# Which axes of a product change places where the two tiles do.
_MIRROR = {
    ("full", False): ((2, 3), (0, 1)), ("each", False): ((2,), (1,)), ("trace", False): ((1,), (0,)),
    ("full", True): ((2, 0), (0, 2)),
}  # fmt: skip


def _not_finite(*recorded: _Factors) -> UserError:
    """What to say of derivatives that are not finite; the first parameter of which they are is named."""
    sides = (
        (name, x) for some in recorded for name, factor in some.items()
        for x in ([factor] if isinstance(factor, Tensor) else [side for use in factor for side in use[:2]])
    )  # fmt: skip
    name = next((name for name, x in sides if not x.isfinite().all()), "some parameters")
    return UserError(
        f"the derivatives by {name} are NaN or infinite; expected finite ones; leave the inputs out where the model "
        "has no derivative, or repair its weights"
    )


def _signs(choice: Choice, f: Tensor) -> Tensor:
    """Combinations of outputs with signs at random, over √O: on average their kernel is the mean over outputs."""
    generator = torch.Generator().manual_seed(choice.seed)
    signs = 2.0 * torch.randint(0, 2, (choice.projections, f.shape[1]), generator=generator) - 1.0
    return (signs / math.sqrt(f.shape[1])).to(f)


def _cut(n: int, size: int) -> list[slice]:
    return [slice(k, min(n, k + size)) for k in range(0, n, size)]
