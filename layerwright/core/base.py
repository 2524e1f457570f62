"""Base: what a plan is applied to, a live model or a checkpoint of which no weight is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.anatomy import Anatomy
from layerwright.core.depth_config import DepthConfig
from layerwright.core.draft import Block, Draft, Weights
from layerwright.core.errors import NotByBlocks, UserError
from layerwright.core.frame import container_of, depth_config, described, host_of
from layerwright.core.inputs import Inputs
from layerwright.core.probe import probe_inputs
from layerwright.core.recipe import Recipe
from layerwright.core.shards import Checkpoint
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.tied import numbered, plain
from layerwright.core.wiring import pretending

_SAMPLE = 4096


class LiveBase:
    """A model in memory.

    Attributes:
        stack: the part of it that a configuration describes, or all of it, and the tower there.
        model: of that stack.
        host: path of that part in the whole model.
        state: its tensors by name.
        paths: of the block at each application.
    """

    as_is = True

    def __init__(self, stack: Stack, inputs: Inputs, batches: Sequence[Inputs] = ()) -> None:
        """A model, a batch on which the parts of its blocks are found, and data for what is fitted."""
        if getattr(stack.model, "hf_quantizer", None) is not None:
            raise UserError("the weights are quantized, and their scales belong to them; reshape before quantizing")
        stack = replace(stack, model=plain(stack.model))
        self._whole, self._inputs, self._batches = stack, inputs, batches
        self.host, self.stack = host_of(stack)
        self.model = self.stack.model
        self.state = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        self.paths = tuple(self.stack.tower.block_paths[k] for k in stack.order)

    @cached_property
    def config(self) -> DepthConfig | None:
        """What its configuration says of blocks; None where it has none."""
        if not described(self.model):
            return None
        parent, _ = container_of(self.stack)
        return depth_config(self.model, parent, len(self.paths))

    @cached_property
    def anatomy(self) -> Anatomy:
        """The parts of its blocks."""
        return Anatomy(self._whole, self._inputs, self._batches)

    def draft(self) -> Draft:
        """The base as a draft: each weight a recipe that is a copy."""
        container_of(self.stack)
        recipes = {name: Recipe.of(name, tuple(t.shape), t.dtype) for name, t in self.state.items()}
        shared = numbered(self.model, self.paths) if len(set(self.paths)) > 1 else [{}] * len(self.paths)
        below = [_below(recipes, f"{path}.") for path in self.paths]
        blocks = [Block(k, weights, tied) for k, (weights, tied) in enumerate(zip(below, shared))]
        return Draft(tuple(blocks), _base=self)

    def fingerprint(self) -> str:
        """A hash that is another for another model: of names, shapes, and pieces of every tensor."""
        return _fingerprint((n, t.dtype, tuple(t.shape), _samples(t)) for n, t in sorted(self.state.items()))


class StoredBase:
    """A checkpoint: the model without weights, and where each of them lies."""

    def __init__(self, skeleton: Skeleton, blocks: str | None = None) -> None:
        """A skeleton, and the path of its tower where it has several.

        Raises:
            UserError: there is no list of blocks, or the files do not number them.
        """
        self.skeleton, self.model = skeleton, skeleton.model
        self.container = _container(skeleton.model, blocks)
        self.depth = len(list(skeleton.model.get_submodule(self.container).children()))
        self.stem = self._stem()
        self._open = ExitStack()

    def _stem(self) -> str:
        """What stands before a block's number in the names of stored tensors."""
        stems: set[str] | None = None
        for k in range(self.depth):
            names = self.skeleton.below(f"{self.container}.{k}")
            stored = {s for name in names for s in self.skeleton.recipes[name].sources()}
            found = set.intersection(*(_stems(name, k) for name in stored)) if stored else set()
            stems = found if stems is None else stems & found
        if not stems:
            raise NotByBlocks(
                f"{self.skeleton.checkpoint.folder} does not store the blocks of {self.container} by number; load the "
                "model and reshape it in memory"
            )
        return min(stems, key=len)

    @cached_property
    def config(self) -> DepthConfig:
        """What its configuration says of blocks."""
        return depth_config(self.model, self.container, self.depth)

    @cached_property
    def as_is(self) -> bool:
        """Whether its weights are stored as the model has them, under the same names in each block."""
        for k in range(self.depth):
            path, stored = f"{self.container}.{k}.", f"{self.stem}{k}."
            for name in self.skeleton.below(path.removesuffix(".")):
                recipe = self.skeleton.recipes[name]
                if not recipe.copy or recipe.sources() != {stored + name.removeprefix(path)}:
                    return False
        return True

    def draft(self) -> Draft:
        """The base as a draft: each stored tensor a recipe that is a copy."""
        entries = self.skeleton.checkpoint.entries.values()
        recipes = {e.name: Recipe.of(e.name, e.shape, e.dtype) for e in entries}
        blocks = [Block(k, _below(recipes, f"{self.stem}{k}.")) for k in range(self.depth)]
        return Draft(tuple(blocks), _base=self)

    def loose(self) -> dict[str, Tensor]:
        """Recipes of the stored tensors that are of no block."""
        inside = tuple(f"{self.stem}{k}." for k in range(self.depth))
        entries = self.skeleton.checkpoint.entries.values()
        return {e.name: Recipe.of(e.name, e.shape, e.dtype) for e in entries if not e.name.startswith(inside)}

    @cached_property
    def places(self) -> dict[str, str]:
        """For stored tensors that are a weight of the model as it is, its name there."""
        recipes = self.skeleton.recipes.items()
        return {source: name for name, recipe in recipes if recipe.copy for source in recipe.sources()}

    @cached_property
    def anatomy(self) -> Anatomy:
        """The parts of blocks, seen with random weights: only one block of each make is in memory."""
        inputs = probe_inputs(self.model)
        self._open.enter_context(pretending(self.skeleton))
        return Anatomy(Stack.find(self.model, inputs, self.container), inputs, None)

    def close(self) -> None:
        """Take the random weights out again."""
        self._open.close()

    def fingerprint(self) -> str:
        """A hash that is another for another model: of names, shapes, and pieces of every tensor."""
        return stored_fingerprint(self.skeleton.checkpoint)


def stored_fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint of a checkpoint: three pieces of each tensor are read, not all of it."""
    entries = sorted(checkpoint.entries.values(), key=lambda e: (e.file, e.start))
    found = []
    files: dict[Path, Any] = {}
    with ExitStack() as opened:
        for e in entries:
            if e.file not in files:
                files[e.file] = opened.enter_context(e.file.open("rb"))
            pieces = []
            for start, length in _places(e.nbytes):
                files[e.file].seek(e.start + start)
                pieces.append(files[e.file].read(length))
            found.append((e.name, e.dtype, e.shape, b"".join(pieces)))
    return _fingerprint(sorted(found, key=lambda x: x[0]))


def _places(nbytes: int) -> list[tuple[int, int]]:
    """The first, middle and last bytes."""
    if nbytes <= 3 * _SAMPLE:
        return [(0, nbytes)]
    middle = nbytes // 2 // _SAMPLE * _SAMPLE
    return [(0, _SAMPLE), (middle, _SAMPLE), (nbytes - _SAMPLE, _SAMPLE)]


def _samples(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
    return b"".join(flat[start : start + n].cpu().numpy().tobytes() for start, n in _places(flat.numel()))


def _fingerprint(tensors: Iterable[tuple[str, torch.dtype, Sequence[int], bytes]]) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, sample in tensors:
        digest.update(f"{name}\0{dtype}\0{list(shape)}\0".encode() + sample)
    return digest.hexdigest()


def _below(recipes: Mapping[str, Recipe], prefix: str) -> Weights:
    return Weights({name.removeprefix(prefix): recipe for name, recipe in recipes.items() if name.startswith(prefix)})


def _stems(name: str, k: int) -> set[str]:
    """Everything that stands before the number k in a name."""
    parts = name.split(".")
    return {".".join([*parts[:n], ""]) for n, part in enumerate(parts[:-1]) if part == str(k)}


def _container(model: nn.Module, blocks: str | None) -> str:
    """The path of the list of blocks: the one named, or the one with the most weights."""
    lists = dict(_lists(model))
    if blocks is not None:
        named = dict(model.named_modules()).get(blocks)
        if not isinstance(named, nn.ModuleList) or not len(named):
            raise UserError(f"no list of blocks at {blocks!r}; there are {', '.join(lists) or 'none'}")
        return blocks
    if not lists:
        raise NotByBlocks(f"{type(model).__name__} has no list of blocks of one class")
    return max(lists, key=lambda path: sum(p.numel() for p in lists[path].parameters()))


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of at least two modules of one class, the outermost ones."""
    found: list[str] = []
    for path, module in model.named_modules():
        inner = any(path.startswith(f"{p}.") for p in found)
        if isinstance(module, nn.ModuleList) and not inner and len(module) >= 2 and len({type(m) for m in module}) == 1:
            found.append(path)
            yield path, module
