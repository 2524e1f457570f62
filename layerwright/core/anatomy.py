"""What the weights of a block are for, found by trying: which silence it, and which read a norm's output.

No table of names. A weight is silenced, the block is called on a small batch, and what comes out says what it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.fit import instead, last_matrix
from layerwright.core.inputs import Inputs, on_device, small
from layerwright.core.queries import Piece, query_pieces
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.core.sublayers import Sublayer
from layerwright.core.trace import Call, watch
from layerwright.maths.similarity import relative_error

_SAME = 1e-5


@dataclass(frozen=True)
class Norm:
    """A norm of a block whose affine part can be folded into what reads it.

    Attributes:
        weight: name of its scale.
        bias: name of its shift, or None.
        readers: weights that take its output, each with the axis along which they do.
        neutral: value of the scale with which the norm scales nothing: 1, or 0 where it adds one itself.
        biases: names of the readers' biases, by reader, where they have one.
    """

    weight: str
    bias: str | None
    readers: tuple[tuple[str, int], ...]
    neutral: float
    biases: Mapping[str, str]


class Anatomy:
    """The parts of a model's blocks, each found when it is first asked for."""

    def __init__(self, stack: Stack, inputs: Inputs, batches: Sequence[Inputs] | None = ()) -> None:
        """Watch the model on a small piece of a batch.

        Args:
            stack: the model and its tower.
            inputs: a batch.
            batches: what is fitted is fitted on all of them; None where the weights are not the model's own.
        """
        self.stack, self._batches = stack, batches
        self._inputs = on_device(small(inputs), stack.model)
        self._replay: Replay | None = None
        self._found: dict[tuple[str, Any], Any] = {}

    @property
    def replay(self) -> Replay:
        """A pass over the small batch."""
        if self._replay is None:
            with undisturbed(self.stack.model), torch.no_grad():
                self._replay = Replay(self.stack, self._inputs)
        return self._replay

    def sublayers(self, k: int) -> tuple[Sublayer, ...]:
        """The parts of a block that add to the stream; empty where it is no sum."""
        return self.stack.parts[k]

    def silencers(self, k: int) -> tuple[str, ...]:
        """The fewest weights, the last to run of each part, that make a block the identity when they are zero.

        The last ones, because gradients reach no zero that lies behind other zeros.

        Raises:
            UserError: no zeros make it the identity, as in blocks that norm the stream itself.
        """
        return self._once("silencers", k, self._silencers)

    def writers(self, k: int) -> tuple[str, ...]:
        """The weights with which a block's parts write to the stream: what they add is linear in them.

        Raises:
            UserError: there are none, as where a norm stands between them and the stream.
        """
        return self._once("writers", k, self._writers)

    def norms(self, k: int) -> tuple[Norm, ...]:
        """The norms of a block whose scale can move into the weights that read them."""
        return self._once("norms", k, self._norms)

    def input_axes(self, k: int) -> Mapping[str, int]:
        """Along which axis each matrix of a block meets its input."""
        return self._once("input_axes", k, self._input_axes)

    def queries(self, k: int) -> tuple[Piece, ...]:
        """The pieces of a block's weights that, times c, make the queries of its self-attention c times, and no more.

        Raises:
            UserError: no attention is seen, or there are no such pieces.
        """
        return self._once("queries", k, self._queries)

    def fitted(self, start: int, stop: int, by: int) -> dict[str, Tensor]:
        """The last matrix of block `by`, fitted so that it does alone what blocks `start` to `stop` do (`core/fit.py`).

        Raises:
            UserError: there is no data to fit on, or what the block adds is not linear in its last matrix.
        """
        if self._batches is None:
            raise NeedsModel("a fit")
        if not self._batches:
            raise UserError("there is no data to fit on; give text with --text")
        block = self._block(by)
        name = [name for name in self.silencers(by) if block.get_parameter(name).ndim == 2][-1]
        with undisturbed(self.stack.model), torch.no_grad():
            return last_matrix(self.stack, self._batches, (start, stop, by), name)

    def _block(self, k: int) -> nn.Module:
        return self.stack.blocks[self.stack.order[k]]

    def _once(self, what: str, k: int, find: Any) -> Any:
        """What was found for one block holds for all of its make."""
        block = self._block(k)
        make = (type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters()))
        if (what, make) not in self._found:
            with undisturbed(self.stack.model), torch.no_grad():
                self._found[what, make] = find(k)
        return self._found[what, make]

    def _silencers(self, k: int) -> tuple[str, ...]:
        block, state = self._block(k), self.replay.states[k]
        left = self._as_they_run(k)

        def silent(names: Iterable[str]) -> bool:
            with instead(block, {name: torch.zeros_like(block.get_parameter(name)) for name in names}):
                return bool(torch.equal(self.replay.block(k, state), state))

        if not silent(left):
            raise UserError(
                f"block {k} ({self.stack.tower.block_class}) is no identity even with all weights zero, as it norms "
                "the stream itself; an exact identity cannot be put beside it"
            )
        for name in list(left):
            fewer = [other for other in left if other != name]
            if silent(fewer):
                left = fewer
        return tuple(left)

    def _writers(self, k: int) -> tuple[str, ...]:
        """Those that silence the block, where half of the last ones adds half."""
        names, block, state = self.silencers(k), self._block(k), self.replay.states[k]
        last = names[-1].rpartition(".")[0]
        own = {name: block.get_parameter(name) for name in names if name.rpartition(".")[0] == last}

        def with_factor(factor: float) -> Tensor:
            with instead(block, {name: factor * weight for name, weight in own.items()}):
                return self.replay.block(k, state)

        whole, half, none = (with_factor(f).double() for f in (1.0, 0.5, 0.0))
        if relative_error(half - none, 0.5 * (whole - none)) > _SAME:
            raise UserError(f"block {k} norms what its parts add, so that no weight scales it")
        return names

    def _queries(self, k: int) -> tuple[Piece, ...]:
        title, run = f"block {k} ({self.stack.tower.block_class})", partial(self.replay.block, k)
        return query_pieces(title, self._block(k), run, self.replay.states[k], self._as_they_run(k))

    def _as_they_run(self, k: int) -> list[str]:
        """Names of a block's weights in the order in which their modules run; those that did not run come first."""
        block = self._block(k)
        modules = dict(block.named_modules())
        calls: list[Call] = []
        with watch([m for m in modules.values() if m is not block], calls):
            self.replay.block(k, self.replay.states[k])
        ran = {c.module: n for n, c in enumerate(calls)}
        return sorted(
            (name for name, _ in block.named_parameters()), key=lambda n: ran.get(modules[n.rpartition(".")[0]], -1)
        )

    def _input_axes(self, k: int) -> Mapping[str, int]:
        block = self._block(k)
        paths = {module: path for path, module in block.named_modules() if path and not any(module.children())}
        calls: list[Call] = []
        with watch(list(paths), calls):
            self.replay.block(k, self.replay.states[k])
        axes = {f"{paths[c.module]}.weight": input_axis(c.module, c.inputs[0]) for c in calls if c.inputs}
        return {name: axis for name, axis in axes.items() if axis is not None}

    def _norms(self, k: int) -> tuple[Norm, ...]:
        block, state = self._block(k), self.replay.states[k]
        paths = {module: path for path, module in block.named_modules() if path}
        calls: list[Call] = []
        with watch(list(paths), calls):
            self.replay.block(k, state)
        found = (self._norm(k, c, paths, calls) for c in calls if _is_norm(c.module, self.stack.width))
        return tuple(norm for norm in found if norm is not None)

    def _norm(self, k: int, call: Call, paths: Mapping[nn.Module, str], calls: list[Call]) -> Norm | None:
        """Who reads this norm; None where that is not only linear maps."""
        path, module, out = paths[call.module], call.module, call.output
        if out is None:
            return None
        readers = {c.module for c in calls if c.module is not module and any(_is(x, out) for x in c.inputs)}
        ends = [m for m in readers if not any(True for _ in m.children())]
        linear = {m: axis for m in ends if (axis := input_axis(m, out)) is not None}
        if not ends or len(linear) < len(ends):
            return None
        biases = {f"{paths[m]}.weight": f"{paths[m]}.bias" for m in linear if getattr(m, "bias", None) is not None}
        shift = f"{path}.bias" if getattr(module, "bias", None) is not None else None
        for neutral in (1.0, 0.0):
            norm = Norm(
                f"{path}.weight", shift, tuple((f"{paths[m]}.weight", a) for m, a in linear.items()), neutral, biases
            )
            if (shift is None or len(biases) == len(linear)) and self._folds(k, norm):
                return norm
        return None

    def _folds(self, k: int, norm: Norm) -> bool:
        """Whether the block stays what it is when the norm's scale moves on."""
        block, state = self._block(k), self.replay.states[k]
        weights = dict(block.named_parameters())
        step = self.replay.block(k, state) - state
        with instead(block, folded(weights, norm)):
            other = self.replay.block(k, state) - state
        eps = torch.finfo(state.dtype).eps
        return relative_error(other.double(), step.double()) <= max(_SAME, 16 * eps)


def folded(weights: Mapping[str, Tensor], norm: Norm) -> dict[str, Tensor]:
    """The weights that change when a norm's scale and shift move into what reads it: W ← W·γ, b ← b + W·β."""
    scale = weights[norm.weight] + (1.0 - norm.neutral)
    made = {norm.weight: torch.full_like(weights[norm.weight], norm.neutral)}
    if norm.bias is not None:
        made[norm.bias] = torch.zeros_like(weights[norm.bias])
    for name, axis in norm.readers:
        weight = weights[name]
        made[name] = along(weight, scale, axis)
        if norm.bias is not None:
            shift = weights[norm.bias]
            made[norm.biases[name]] = weights[norm.biases[name]] + (weight @ shift if axis == 1 else shift @ weight)
    return made


def along(weight: Tensor, factors: Tensor, axis: int) -> Tensor:
    """A weight times one factor for each place along an axis."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight * factors.reshape(shape)


def _is_norm(module: nn.Module, width: int) -> bool:
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    return weight is not None and tuple(weight.shape) == (width,) and set(own) <= {"weight", "bias"}


def _is(x: Tensor, out: Tensor) -> bool:
    return x.data_ptr() == out.data_ptr() and x.numel() == out.numel() and x.dtype == out.dtype


def input_axis(module: nn.Module, x: Tensor) -> int | None:
    """Along which axis a matrix meets its input: `[out, in]` as a linear layer has it, or the other way round."""
    weight = getattr(module, "weight", None)
    if (
        not isinstance(weight, Tensor)
        or weight.ndim != 2
        or not set(dict(module.named_parameters())) <= {"weight", "bias"}
    ):
        return None
    row = x.reshape(-1, x.shape[-1])[:1]
    out = module(row.reshape(*[1] * (x.ndim - 1), -1))
    if not isinstance(out, Tensor):
        return None
    zero = module(torch.zeros_like(row).reshape(*[1] * (x.ndim - 1), -1))
    for axis, product in ((1, lambda: row @ weight.T), (0, lambda: row @ weight)):
        fits = weight.shape[axis] == row.shape[-1] and out.numel() == weight.shape[1 - axis]
        if fits and relative_error((out - zero).double().flatten(), product().double().flatten()) < 1e-3:
            return axis
    return None
