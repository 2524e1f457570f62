"""Find the towers of blocks in a model by tracing one call: no table of model names, no configuration.

Every child of a container (`ModuleList`, `Sequential`, `ModuleDict`, or a family of attributes `layer1 … layer4`) is
watched while the model runs once. Where one child's output is the next child's input, bit for bit and of the same
shape, the children form a tower. The order of calls is recorded, so that a shared block called four times is a tower
of depth four.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def tensors(x: Any) -> Iterator[Tensor]:
    """All tensors in a nest of tuples, lists and mappings, in order."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict) or hasattr(x, "items"):
        for value in x.values():
            yield from tensors(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from tensors(value)


def first_tensor(x: Any) -> Tensor | None:
    """The first tensor of a nest: what a block hands on."""
    return next(tensors(x), None)


@dataclass(frozen=True)
class Tower:
    """A tower as tracing saw it: where its blocks live, in which order they ran, and whether they chain."""

    path: str
    block_paths: tuple[str, ...]
    order: tuple[int, ...]
    chained: bool
    same_shape: bool
    parameters: int
    block_class: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Number of block applications."""
        return len(self.order)

    @property
    def surveyable(self) -> bool:
        """Whether it has a stream: each output is the next input, and all have one shape."""
        return self.chained and self.same_shape and self.depth >= 2

    def describe(self) -> str:
        """One phrase for messages and reports."""
        flaw = "" if self.chained else ", outputs do not feed the next input"
        flaw = flaw or ("" if self.same_shape else ", the shape changes on the way")
        return f"{self.path} ({self.depth} x {self.block_class}{flaw})"


@dataclass
class Call:
    """One call of a watched module: the tensors that went in, and the first that came out."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor | None = None


def _families(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """Groups of sibling modules that may be a tower: path of the group -> (path, module) of each member."""
    groups: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        children = [(prefix + name, child) for name, child in module.named_children()]
        if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            groups[path or "(model)"] = children
            continue
        numbered: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, child in children:
            stem = re.sub(r"\d+$", "", name.rsplit(".", 1)[-1])
            if stem != name.rsplit(".", 1)[-1]:
                numbered.setdefault(stem, []).append((name, child))
        for stem, members in numbered.items():
            if len(members) > 1:
                numbers = [re.sub(r"^.*?(\d+)$", r"\1", name) for name, _ in members]
                groups[f"{prefix}{stem}{{{numbers[0]}..{numbers[-1]}}}"] = members
    return groups


@contextmanager
def watch(modules: list[nn.Module], calls: list[Call]) -> Iterator[None]:
    """Note each call of the modules, with the tensors that went in and the first that came out."""
    running: list[Call] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(Call(module, tuple(tensors([args, kwargs]))))
        calls.append(running[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        running.pop().output = first_tensor(output)

    handles = []
    try:
        for module in modules:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers, bit for bit (NaN equals NaN)."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a is b or a.data_ptr() == b.data_ptr() or torch.equal(a, b) or bool(((a == b) | (a != a) & (b != b)).all())


def trace(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Tower]:
    """All towers of the model, best first: surveyable before not, outer before inner, then by depth times parameters.

    Args:
        model: the model; it is only watched.
        run: calls the model once on a small batch.
    """
    groups = _families(model)
    members = list({id(m): m for group in groups.values() for _, m in group}.values())
    calls: list[Call] = []
    with watch(members, calls), torch.no_grad():
        run(model)
    towers = [t for path, group in groups.items() for t in _towers_of(path, group, calls)]
    outer = [t for t in towers if t.surveyable]
    inside = {t: any(_is_inside(t, o) for o in outer if o is not t) for t in towers}
    return sorted(towers, key=lambda t: (not t.surveyable, inside[t], -t.depth * max(t.parameters, 1)))


def _is_inside(tower: Tower, other: Tower) -> bool:
    return any(tower.block_paths[0].startswith(path + ".") for path in other.block_paths)


def _towers_of(path: str, group: list[tuple[str, nn.Module]], calls: list[Call]) -> Iterator[Tower]:
    """The whole group as one tower, and each maximal stretch of it that chains in one shape."""
    ids = {id(m) for _, m in group}
    seen = [c for c in calls if id(c.module) in ids]
    if len(seen) < 2 or any(c.output is None for c in seen):
        return
    links = [any(same(a.output, x) for x in b.inputs) for a, b in pairwise(seen)]
    keeps = [any(x.shape == c.output.shape for x in c.inputs) for c in seen if c.output is not None]
    stretches, start = [], 0
    for k in range(1, len(seen) + 1):
        if k == len(seen) or not (links[k - 1] and keeps[k - 1] and keeps[k]):
            stretches.append((start, k))
            start = k
    whole = (0, len(seen))
    for a, b in dict.fromkeys([whole, *stretches]):
        if b - a >= 2:
            name = path if (a, b) == whole else f"{path}[{a}:{b}]"
            yield _tower(name, group, seen[a:b], all(links[a : b - 1]), all(keeps[a:b]))


def _tower(name: str, group: list[tuple[str, nn.Module]], seen: list[Call], chained: bool, same_shape: bool) -> Tower:
    names = {id(m): path for path, m in group}
    distinct = list({id(c.module): c.module for c in seen}.values())
    if len(distinct) == len(group):  # keep the container's own numbering, also where the calls come in another order
        distinct = [m for _, m in group]
    index = {id(m): k for k, m in enumerate(distinct)}
    shapes = tuple(tuple(c.output.shape) for c in seen if c.output is not None)
    classes = list(dict.fromkeys(type(m).__name__ for m in distinct))
    return Tower(
        path=name,
        block_paths=tuple(names[id(m)] for m in distinct),
        order=tuple(index[id(c.module)] for c in seen),
        chained=chained,
        same_shape=same_shape,
        parameters=sum(p.numel() for p in {p for m in distinct for p in m.parameters()}),
        block_class="/".join(classes[:3]),
        shapes=shapes,
    )
