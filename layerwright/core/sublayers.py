"""Find the sublayers of a block numerically: the modules whose outputs, added to the stream, make up the block.

Watch every module inside a block during one call. Starting from the block's input, look for a module whose output,
added to the current state (times a constant, for models that scale their branches), gives a state that the block goes
on with, until the block's output is reached. Where no such chain exists, try parts that all read the block's input.
Nothing is found where the block is not a sum, as in post-normalised blocks: then only whole blocks are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.trace import Call, first_tensor, watch

_TOLERANCE = 1e-4
# In half precision a small step is mostly rounding error; one that is not explained to this share is not explained.
_ROUNDED = 0.2


@dataclass(frozen=True)
class Sublayer:
    """One part of a block: the module's path in the block, which of its calls, and what it is called in tables.

    `scale` multiplies the module's output before it is added to the stream; `parallel` says that it reads the block's
    input rather than the state that the part before it left.
    """

    path: str
    call: int
    role: str
    scale: float
    parallel: bool


@dataclass(frozen=True, eq=False)
class _Output:
    """What a module inside the block returned, in the shape of the stream."""

    path: str
    call: int
    order: int
    value: Tensor


def find_sublayers(block: nn.Module, run: Callable[[], Any], before: Tensor) -> tuple[Sublayer, ...]:
    """The sublayers of one block, in the order in which they add to the stream; empty where the block is no sum.

    Args:
        block: the block.
        run: calls the block once on `before` and returns what it returns.
        before: the state that goes in.
    """
    calls: list[Call] = []
    paths = {id(m): path for path, m in block.named_modules() if path}
    with watch([m for m in block.modules() if m is not block], calls), torch.no_grad():
        after = first_tensor(run())
    if after is None:
        return ()
    outputs, count = [], dict.fromkeys(paths, 0)
    for order, c in enumerate(calls):
        key = id(c.module)
        value = _like(c.output, before)
        if value is not None:
            outputs.append(_Output(paths[key], count[key], order, value))
        count[key] += 1
    outputs.sort(key=lambda o: (o.path.count("."), o.order))  # the outermost module that explains a step is the part
    states = [s for c in calls for x in (*c.inputs, c.output) if (s := _like(x, before)) is not None]
    chain = _chain(outputs, states, before, after)
    found = chain or _parallel(outputs, before, after)
    if len(found) < 2:  # a single branch is the block itself
        return ()
    return _named([paths[id(c.module)] for c in calls], found, parallel=not chain)


def explains(parts: tuple[Sublayer, ...], block: nn.Module, run: Callable[[], Any], before: Tensor) -> bool:
    """Whether what these parts give in a call, added up, is what the block adds; NaN and infinities are passed over."""
    modules = {s.path: block.get_submodule(s.path) for s in parts}
    calls: list[Call] = []
    with watch(list(modules.values()), calls), torch.no_grad():
        after = first_tensor(run())
    if after is None:
        return False
    left, size = (after.double() - before.double()).flatten(), before.double().norm().nan_to_num(0.0)
    step = left.norm().nan_to_num(0.0)
    for s in parts:
        outputs = [c.output for c in calls if c.module is modules[s.path]]
        value = _like(outputs[s.call], before) if s.call < len(outputs) else None
        if value is None:
            return False
        left = left - s.scale * value.double().flatten()
    known = left[left.isfinite()]
    eps = torch.finfo(before.dtype).eps
    return bool(known.norm() <= _TOLERANCE * step + len(parts) * eps * size)


def _like(x: Tensor | None, stream: Tensor) -> Tensor | None:
    """The tensor in the stream's shape, where it has its size and width (some blocks fold tokens into the batch)."""
    if x is None or not x.is_floating_point() or x.numel() != stream.numel() or x.shape[-1] != stream.shape[-1]:
        return None
    return x.reshape(stream.shape)


def _scale(current: Tensor, target: Tensor, output: Tensor) -> float | None:
    """The constant c > 0 with target = current + c · output but for rounding, or None where there is none."""
    x, y = output.double().flatten(), (target.double() - current.double()).flatten()
    squared = x @ x
    if squared == 0 or not torch.isfinite(squared):
        return None
    if torch.equal(target, (current + output).to(target.dtype)):
        return 1.0
    return next((c for c in (1.0, float((x @ y) / squared)) if c >= 1e-3 and _fits(y, c * x, target)), None)


def _fits(step: Tensor, added: Tensor, target: Tensor) -> bool:
    """Whether a step between two states is what was added: nearly, or as nearly as rounding lets see."""
    error = (step - added).abs()
    rounding = torch.finfo(target.dtype).eps * (target.double().flatten().abs() + added.abs())
    explained = error.norm() / step.norm()
    return bool(explained <= _TOLERANCE or (explained <= _ROUNDED and (error <= rounding).double().mean() >= 0.99))


def _chain(outputs: list[_Output], states: list[Tensor], before: Tensor, after: Tensor) -> list[tuple[_Output, float]]:
    """Parts that follow one another: each adds to the state that the one before it left."""
    targets = _distinct([*states, after], besides=before)
    current = before
    near = _Near(outputs)
    chain: list[tuple[_Output, float]] = []
    while not _equal(current, after):
        step = _step(near, targets, current, chain[-1][0].order if chain else -1)
        if step is None:
            return []
        output, scale, current = step
        targets = [t for t in targets if t is not current]
        chain.append((output, scale))
    return chain


class _Near:
    """Which outputs may be a step between two states, seen by products of all with it at once.

    One that no factor brings nearer to the step than its share, nor rounding, can be left out: `_scale` looks at it
    with forty operations of its own, and there are hundreds of pairs.
    """

    def __init__(self, outputs: list[_Output]) -> None:
        self.outputs = outputs
        if outputs:
            self._values = torch.stack([o.value.double().flatten() for o in outputs])
            self._squares = self._values.square().sum(1)
            self._eps = max(torch.finfo(o.value.dtype).eps for o in outputs)

    def to(self, current: Tensor, target: Tensor) -> list[_Output]:
        """The outputs that may be the step, in their order."""
        if not self.outputs:
            return []
        step = (target.double() - current.double()).flatten()
        along, size = self._values @ step, step @ step
        rest = size - along.square() / self._squares  # what is left of the step with the best factor, squared
        error = size - 2 * along + self._squares  # with the factor 1
        eps = max(self._eps, *(torch.finfo(x.dtype).eps for x in (current, target)))
        rounding = (4 * eps) ** 2 * target.double().square().sum()
        far = (rest > (1.1 * _ROUNDED) ** 2 * size) & (error > rounding)  # nothing is far from NaN
        return [o for o, left_out in zip(self.outputs, far.tolist()) if not left_out]


def _step(near: _Near, targets: list[Tensor], current: Tensor, last: int) -> tuple[_Output, float, Tensor] | None:
    for target in targets:
        outputs = [o for o in near.to(current, target) if o.order > last]
        fits = [(o, c) for o in outputs if (c := _scale(current, target, o.value)) is not None]
        if fits:  # a norm layer can turn one part into a multiple of another: an unscaled fit comes first
            output, scale = next((fit for fit in fits if fit[1] == 1.0), fits[0])
            return output, scale, target
    return None


def _parallel(outputs: list[_Output], before: Tensor, after: Tensor) -> list[tuple[_Output, float]]:
    """Two or three parts that all read the block's input and are added at once."""
    distinct = [o for k, o in enumerate(outputs) if not any(_equal(o.value, p.value) for p in outputs[:k])]
    for n in (2, 3):
        for group in combinations(distinct[:16], n):
            total = torch.stack([o.value.double() for o in group]).sum(0)
            if _scale(before, after, total.to(before.dtype)) == 1.0:
                return [(o, 1.0) for o in sorted(group, key=lambda o: o.order)]
    return []


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def _distinct(states: list[Tensor], besides: Tensor) -> list[Tensor]:
    fresh: list[Tensor] = []
    for x in states:
        if not any(_equal(x, y) for y in (besides, *fresh)):
            fresh.append(x)
    return fresh


# Labels only: what a part is called in tables, from the names of the modules that ran for it.
_WORDS = (("attention", ("att",)), ("mixer", ("mamba", "mixer", "ssm", "conv", "recurrent", "rwkv")))


def _named(ran: list[str], found: list[tuple[_Output, float]], parallel: bool) -> tuple[Sublayer, ...]:
    parts: list[Sublayer] = []
    start = 0
    for output, scale in found:
        window = [] if parallel or "mlp" in output.path else ran[start : output.order + 1]
        words = " ".join([output.path, *(path for path in window if "norm" not in path.rsplit(".", 1)[-1])]).lower()
        role = next((role for role, signs in _WORDS if any(sign in words for sign in signs)), "mlp")
        same = sum(p.role.split("_")[0] == role for p in parts)
        parts.append(Sublayer(output.path, output.call, role if not same else f"{role}_{same + 1}", scale, parallel))
        start = _end(ran, output)
    return tuple(parts)


def _end(ran: list[str], output: _Output) -> int:
    """Where the calls inside a part end: the first later call that is not below it."""
    k = output.order + 1
    while k < len(ran) and ran[k].startswith(output.path + "."):
        k += 1
    return k
