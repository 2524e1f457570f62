"""A narrow model and a wide one that is to compute the same from copies: what the axes of weights are, by trying."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.anatomy import input_axis
from layerwright.core.errors import UserError
from layerwright.core.frame import settle
from layerwright.core.inputs import Inputs, call
from layerwright.core.probe import probe_inputs
from layerwright.core.trace import Call, first_tensor, watch
from layerwright.maths.growth import repeated
from layerwright.maths.similarity import relative_error

Axes = tuple[int, ...]
# Ways to take the axes that are tried: those in which few weights are anything special come first.
_MOST = 300
_SAME = 1e-3


class Twins:
    """Two models, and what is assumed of each weight's axes.

    Attributes:
        shapes: of the narrow model's weights.
        axes: of each weight that grow.
        parts: of these axes.
        reads: the axis of each weight along which it meets what it reads, or None.
        neutral: for the scale of a norm the value at which it scales nothing.
        scales: by what the copies of some weights are multiplied.
        tied: whether a head is one with what tokens are looked up in.
    """

    def __init__(self, narrow: Any, wide: Any, container: str, axes: Mapping[str, Axes], factor: int) -> None:
        """Models with random weights, and which axes differ."""
        self.narrow, self.wide, self.factor, self.axes = narrow, wide, factor, axes
        self.container = container
        self.shapes = {name: tuple(t.shape) for name, t in narrow.state_dict().items()}
        self.reads: dict[str, int | None] = {}
        self.neutral: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        self.parts: dict[str, dict[int, list[int]]] = {}
        self.tied = False
        self._weights = dict(narrow.named_parameters(remove_duplicate=False))

    def fit(self, width: int) -> bool:
        """Find how the axes must be taken for both models to answer the same.

        Args:
            width: of the narrow model's stream.
        """
        grown = {name for name, axes in self.axes.items() if axes}
        if not grown <= self._weights.keys() or not self._settles():
            return False
        try:
            with torch.no_grad():
                return self._fits(width)
        except (UserError, RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False  # a class that cannot run at this size

    def _fits(self, width: int) -> bool:
        inputs = probe_inputs(self.narrow)
        self._shake()
        self._watch(inputs)
        wanted = self._answers(self.narrow, inputs)
        for choice in islice(self._choices(width), _MOST):
            self._take(choice)
            if self._scaled(inputs, wanted):
                return True
        return False

    # What is known before

    def _settles(self) -> bool:
        """Whether the class itself gives what no checkpoint holds, and what is another number in a wide model."""
        wanted = {name: x.clone() for name, x in self.wide.named_buffers() if name not in self.shapes}
        if any(x.shape != self.narrow.get_buffer(name).shape for name, x in wanted.items()):
            return False
        with torch.no_grad():
            settle(self.wide, self.narrow)
        return all(torch.equal(x, self.wide.get_buffer(name)) for name, x in wanted.items())

    def _shake(self) -> None:
        """Random numbers of the size that weights have, so that nothing is the same by chance."""
        for p in self.narrow.parameters():
            p.copy_(p + 0.3 * torch.randn_like(p) if p.ndim < 2 else torch.randn_like(p) * p.shape[-1] ** -0.5)

    def _watch(self, inputs: Inputs) -> None:
        """Which weights meet what they read, and which are of norms."""
        paths = {m: path for path, m in self.narrow.named_modules() if not any(True for _ in m.children())}
        calls: list[Call] = []
        with watch(list(paths), calls):
            call(self.narrow, inputs)
        self.reads = dict.fromkeys(self.shapes)
        for c in calls:
            x = next((x for x in c.inputs if x.is_floating_point()), None)
            name = f"{paths[c.module]}.weight"
            if x is None or not self.axes.get(name):
                continue
            self.reads[name] = input_axis(c.module, x)
            if (neutral := _neutral(c.module, x)) is not None:
                self.neutral[name] = neutral
        for names in self._tied():
            if any(self.reads[name] is None for name in names):
                self.tied = self.tied or any(self.reads[name] is not None for name in names)
                self.reads |= dict.fromkeys(names)

    def _tied(self) -> list[list[str]]:
        """Names of weights that are one."""
        groups: dict[int, list[str]] = {}
        for name, p in self._weights.items():
            groups.setdefault(id(p), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    # What is tried

    def _choices(self, width: int) -> Iterator[dict[str, Any]]:
        """Ways to take the axes: for a module the parts of what it writes, for a bare tensor also what it reads."""
        options: dict[str, list[Any]] = {}
        for name, axes in self.axes.items():
            if self._unseen(name):
                readable = (None, *axes) if len(axes) == 1 else (*reversed(axes), None)
                options[name] = [(axis, parts) for axis in readable for parts in self._ways(name, axis, width)]
            elif name.endswith(".weight") and len(self.shapes[name]) > 1:
                options[name] = [(self.reads[name], parts) for parts in self._ways(name, self.reads[name], width)]
        special = [name for name, ways in options.items() if len(ways) > 1]
        default = {name: ways[0] for name, ways in options.items() if ways}
        for count in range(len(special) + 1):
            for names in combinations(special, count):
                for ways in product(*(options[name][1:] for name in names)):
                    yield default | dict(zip(names, ways))

    def _unseen(self, name: str) -> bool:
        """Whether a matrix of a block may meet what it reads without any call that shows it, as experts do."""
        inside = name.startswith(f"{self.container}.") and len(self.shapes[name]) > 1
        return inside and bool(self.axes[name]) and self.reads[name] is None and not name.endswith(".bias")

    def _ways(self, name: str, reads: int | None, width: int) -> list[list[int]]:
        """Parts of the axis that a weight writes: all in one, or several matrices that lie one after the other."""
        written = [axis for axis in self.axes[name] if axis != reads]
        if len(written) != 1:
            return [[]]
        n = self.shapes[name][written[0]]
        if n == width or not name.startswith(f"{self.container}."):
            return [[n]]
        block = ".".join(name.split(".")[: self.container.count(".") + 2])
        lengths = {n for other, shape in self.shapes.items() if other.startswith(f"{block}.") for n in shape}
        equal = [[n // p] * p for p in (2, 3, 4) if n % p == 0 and n // p in lengths]
        first = [[a, (n - a) // 2, (n - a) // 2] for a in sorted(lengths) if 0 < n - a != 2 * a and (n - a) % 2 == 0]
        return [[n], *equal, *first]

    def _take(self, choice: Mapping[str, tuple[int | None, list[int]]]) -> None:
        self.parts = {name: {axis: [self.shapes[name][axis]] for axis in axes} for name, axes in self.axes.items()}
        for name, (reads, parts) in choice.items():
            self.reads[name] = reads
            bias = name.removesuffix("weight") + "bias"
            for other in (name, bias) if parts else ():
                for axis in self.axes.get(other, ()):
                    if (axis != reads or other == bias) and self.shapes[other][axis] == sum(parts):
                        self.parts[other][axis] = parts

    # Whether it is so

    def _scaled(self, inputs: Inputs, wanted: Sequence[Tensor]) -> bool:
        """Whether the wide model answers the same, also where embeddings or the last norm must be scaled for it."""
        self.scales = {}
        state, answer = self._times(inputs, wanted)
        if state is None:
            return False
        if state != 1.0:
            self.scales = dict.fromkeys(self.embeddings(), 1 / state)
            again, answer = self._times(inputs, wanted)
            if again != 1.0:
                return False
        if answer == 1.0:
            return True
        # A head that is tied to embeddings is not divided by the number of copies that it reads.
        scale = 1 / answer if answer is not None else state / self.factor
        known = self.scales
        for name in [n for n in self.neutral if not n.startswith(f"{self.container}.")]:
            self.scales = known | {name: scale, name.removesuffix("weight") + "bias": scale}
            if self._times(inputs, wanted) == (1.0, 1.0):
                return True
        return False

    def embeddings(self) -> list[str]:
        """Names of what the model looks tokens up in."""
        try:
            table = self.narrow.get_input_embeddings().weight
        except (AttributeError, NotImplementedError):
            return []
        return [name for name, p in self._weights.items() if p is table]

    def _times(self, inputs: Inputs, wanted: Sequence[Tensor]) -> tuple[float | None, ...]:
        """How many times the narrow model's first state and answer the wide one's are; None for something else."""
        for name, p in self.wide.named_parameters(remove_duplicate=False):
            p.copy_(self.made(name, self._weights[name]))
        return tuple(
            _ratio(_repeated(w, g, self.factor).double(), g.double(), self.factor)
            for w, g in zip(wanted, self._answers(self.wide, inputs))
        )

    def made(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the wide model, as its parts are taken now."""
        return rescaled(
            repeated(weight, self.parts[name], self.factor, self.reads[name]),
            self.scales.get(name, 1.0), self.neutral.get(name, 1.0),
        )  # fmt: skip

    def _answers(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The state before the first block, and the answer."""
        calls: list[Call] = []
        with watch([model.get_submodule(f"{self.container}.0")], calls):
            answer = first_tensor(call(model, inputs))
        assert answer is not None
        return next(x for x in calls[0].inputs if x.is_floating_point()), answer


def rescaled(weight: Tensor, scale: float, neutral: float) -> Tensor:
    """A weight times a number; one that is a norm's scale less one (neutral 0) as what the norm multiplies with."""
    return weight if scale == 1.0 else (weight + (1.0 - neutral)) * scale - (1.0 - neutral)


def _ratio(wanted: Tensor, got: Tensor, factor: int) -> float | None:
    """How many times one tensor another is, a power of the square root of the factor where it is near one."""
    times = float((wanted * got).sum() / wanted.square().sum())
    if not times > 0 or relative_error(got, times * wanted) > _SAME:
        return None
    power = round(2 * math.log(times, factor))
    near = float(factor) ** (power / 2)
    return near if abs(times / near - 1) < _SAME else times


def _neutral(module: nn.Module, x: Tensor) -> float | None:
    """The value at which a norm's scale does nothing; None for what is no norm."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    out, more = module(x), module(8 * x)
    if not isinstance(out, Tensor) or relative_error(more.double(), out.double()) > 0.05:
        return None
    before = weight.clone()
    try:
        weight.zero_()
        silent = module(x) - (0 if getattr(module, "bias", None) is None else module.bias)
    finally:
        weight.copy_(before)
    return 1.0 if not silent.any() else 0.0


def _repeated(wanted: Tensor, got: Tensor, factor: int) -> Tensor:
    """What is asked of the wide model: the same, or copies of it side by side where it is as wide as the model."""
    return wanted if wanted.shape == got.shape else torch.cat([wanted] * factor, dim=-1)
