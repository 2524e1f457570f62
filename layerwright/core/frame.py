"""Frame: the new model without its weights, built by its class from a configuration, or from copies of modules."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import transformers
from torch import Tensor, nn

from layerwright.core.depth_config import Build, Built, DepthConfig
from layerwright.core.depth_search import Entries
from layerwright.core.errors import UserError
from layerwright.core.load import quietly
from layerwright.core.makes import counters
from layerwright.core.stack import Stack
from layerwright.core.weightless import weightless

# What configurations say of blocks, for classes and configurations that were asked for lately.
_KNOWN: dict[tuple[Any, ...], DepthConfig] = {}
_MOST_KNOWN = 64


class Frame:
    """An empty model of a new order of blocks.

    Attributes:
        model: whose weights are still to come.
        paths: of its blocks, in order.
        source: for the path of each of its modules, the path of the module of the base that it takes after.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], source: Callable[[str], str]) -> None:
        """A model, and where its modules come from."""
        self.model, self.paths, self.source = model, tuple(paths), source


def container_of(stack: Stack) -> tuple[str, str]:
    """The path of the module that holds the blocks, and the name of the first block in it.

    Raises:
        UserError: the blocks are not numbered members of one module.
    """
    paths = stack.tower.block_paths
    parent, _, first = paths[0].rpartition(".")
    prefix = f"{parent}." if parent else ""
    numbered = first.isdecimal() and all(p == f"{prefix}{int(first) + k}" for k, p in enumerate(paths))
    if not numbered or len(paths) not in (1, stack.depth):
        raise UserError(
            f"the blocks of {stack.tower.path} are not the members of one list, each run once, and cannot be "
            "reordered; put them into an nn.ModuleList that the model runs in turn"
        )
    return parent, first


# Models that a configuration describes


def described(model: nn.Module) -> bool:
    """Whether the model's class builds it from a configuration."""
    return isinstance(model, transformers.PreTrainedModel) and getattr(model, "config", None) is not None


def host_of(stack: Stack) -> tuple[str, Stack]:
    """The outermost part of a model that a configuration describes and that holds the blocks, as a stack of its own.

    Returns:
        Its path, empty where it is the whole model or where there is none, and the stack.
    """
    first = stack.tower.block_paths[0]
    for path, module in stack.model.named_modules():
        if described(module) and first.startswith(f"{path}." if path else ""):
            if not path:
                break
            tower = stack.tower
            inside = tuple(p.removeprefix(f"{path}.") for p in tower.block_paths)
            tower = replace(tower, path=tower.path.removeprefix(f"{path}."), block_paths=inside)
            return path, replace(stack, model=module, tower=tower)
    return "", stack


def put_back(model: nn.Module, path: str, host: nn.Module) -> nn.Module:
    """A copy of a model with another module at a path; what is at the path is not copied."""
    return copy.deepcopy(model, {id(model.get_submodule(path)): host}) if path else host


def entries_of(config: Any) -> Entries:
    """A configuration as plain data, as its file holds it."""
    return {name: _listed(value) for name, value in config.to_dict().items()}


def _listed(value: Any) -> Any:
    """The same without tuples, of which files know nothing."""
    if isinstance(value, dict):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def config_of(like: Any, entries: Entries) -> Any:
    """A configuration from plain data, of the same class and with the same kind of attention as another."""
    with quietly():
        config = type(like).from_dict(copy.deepcopy(entries))
    if (kind := getattr(like, "_attn_implementation", None)) is not None:
        config._attn_implementation = kind
    return config


def depth_config(model: nn.Module, container: str, depth: int) -> DepthConfig:
    """What a model's configuration says of its blocks: found once for all models of a class and a configuration.

    Args:
        model: that a configuration describes.
        container: path of its list of blocks.
        depth: of its tower.
    """
    config: Any = model.config
    entries = entries_of(config)
    # One block that runs several times: only the configuration says how often.
    shared = len(list(model.get_submodule(container).children())) == 1
    about = container, depth, shared, getattr(config, "_attn_implementation", None)
    key = (type(model), type(config), *about, json.dumps(entries, sort_keys=True, default=str))
    if key not in _KNOWN:
        found = DepthConfig(entries, depth, _builder(type(model), config, container, shared))
        while len(_KNOWN) >= _MOST_KNOWN:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = found
    return _KNOWN[key]


def _builder(kind: type[nn.Module], like: Any, container: str, shared: bool) -> Build:
    """Models of a class for any configuration, on the meta device."""
    like = copy.deepcopy(like)  # the caller's own may change, and is not to be kept

    def build(entries: Entries) -> Built | str:
        made = _empty(kind, like, entries)
        if isinstance(made, str):
            return made
        blocks = list(made.get_submodule(container).children())
        blocks *= getattr(made.config, "num_hidden_layers", 1) if shared and len(blocks) == 1 else 1
        inside = f"{container}."
        loose = {name: tuple(p.shape) for name, p in made.named_parameters() if not name.startswith(inside)}
        return blocks, loose

    return build


def _empty(kind: type[nn.Module], like: Any, entries: Entries) -> Any:
    """A model of a class without weights, with a configuration of the kind of another; or why there is none."""
    try:
        with quietly(), weightless():
            return kind(config_of(like, entries))
    except Exception as error:  # whatever a class says to a configuration that it cannot have
        return _reason(error)


def _reason(error: Exception) -> str:
    """What a class says in one line; a validator's first line only says that it has something to say."""
    first, *rest = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return re.sub(r"^\w+Error: ", "", rest[0] if rest and first.endswith(":") else first)


def frame_of_config(stack: Stack, entries: Entries, order: Sequence[int]) -> Frame:
    """The model that a configuration describes.

    Raises:
        UserError: there is none.
    """
    parent, _ = container_of(stack)
    like: Any = stack.model
    model = _empty(type(like), like.config, entries)
    if isinstance(model, str):
        raise UserError(f"{type(stack.model).__name__} cannot be built with the new configuration: {model}")
    shared = len(stack.tower.block_paths) == 1
    paths = [stack.tower.block_paths[0] if shared else f"{parent}.{j}" for j in range(len(order))]
    return Frame(model, paths, _sources(stack, paths, order))


# Other models


def frame_of_modules(stack: Stack, order: Sequence[int]) -> Frame:
    """A copy of the model whose list of blocks holds copies of the base's blocks in another order."""
    parent, first = container_of(stack)
    if len(stack.tower.block_paths) < stack.depth:
        raise UserError(f"{stack.tower.path} runs one block several times; only a configuration could say how often")
    model = copy.deepcopy(stack.model)
    container, start, depth = model.get_submodule(parent), int(first), stack.depth
    members = list(container.children())
    numbers = counters(members[start : start + depth])
    fresh = [copy.deepcopy(members[start + k]) for k in order]
    for j, block in enumerate(fresh):
        modules = dict(block.named_modules())
        for name, origin in numbers.items():
            path, _, own = name.rpartition(".")
            if hasattr(modules.get(path), own):
                setattr(modules[path], own, origin + j)
    after = members[start + depth :]
    container._modules.clear()
    for k, module in enumerate([*members[:start], *fresh, *after]):
        container._modules[str(k)] = module
    prefix = f"{parent}." if parent else ""
    paths = [f"{prefix}{start + j}" for j in range(len(order))]
    moved = {f"{prefix}{start + len(order) + n}": f"{prefix}{start + depth + n}" for n in range(len(after))}
    return Frame(model, paths, _sources(stack, paths, order, moved))


def _sources(
    stack: Stack, paths: Sequence[str], order: Sequence[int], moved: Mapping[str, str] | None = None
) -> Callable[[str], str]:
    blocks = stack.tower.block_paths
    base = dict(moved or {}) | {path: blocks[stack.order[k]] for path, k in zip(paths, order)}
    longest = sorted(base, key=len, reverse=True)

    def source(path: str) -> str:
        inside = next((p for p in longest if path == p or path.startswith(f"{p}.")), None)
        return path if inside is None else base[inside] + path[len(inside) :]

    return source


# Filling in


def fill(frame: Frame, base: nn.Module, weights: Mapping[str, Tensor], tied: Mapping[str, Any]) -> None:
    """Put weights into a frame, and what a checkpoint does not hold from the base.

    Args:
        frame: whose weights are on the meta device, or to be replaced.
        base: the model it takes after.
        weights: parameters and buffers by name.
        tied: names that are one weight have the same value here.
    """
    made: dict[Any, nn.Parameter] = {}
    for path, module in frame.model.named_modules():
        prefix = f"{path}." if path else ""
        for own, old in list(module._parameters.items()):
            if old is not None:
                key = tied.get(prefix + own, prefix + own)
                if prefix + own not in weights:
                    raise UserError(
                        f"the new model has a weight {prefix}{own}, and the base has none for it; where the "
                        "base carries adapters, merge them first"
                    )
                if (shape := weights[prefix + own].shape) != old.shape:
                    raise UserError(
                        f"the plan makes {prefix}{own} {list(shape)}, and the configuration {list(old.shape)}: two of "
                        "its steps change one width; do them in two plans"
                    )
                if key not in made:
                    made[key] = nn.Parameter(weights[prefix + own], requires_grad=old.requires_grad)
                module._parameters[own] = made[key]
        origin = dict(base.named_modules()).get(frame.source(path))
        for own, value in _values(module):
            if prefix + own in weights:
                module._buffers[own] = weights[prefix + own]
            elif value.is_meta:
                _copy(module, own, origin, prefix)


def _values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers, and tensors that are plain attributes."""
    yield from [(own, value) for own, value in module._buffers.items() if value is not None]
    yield from [(own, value) for own, value in vars(module).items() if isinstance(value, Tensor)]


def _copy(module: nn.Module, own: str, origin: nn.Module | None, prefix: str) -> None:
    value = None if origin is None else getattr(origin, own, None)
    if not isinstance(value, Tensor):
        raise UserError(f"{prefix}{own} is in no checkpoint and not in the model that was given; it cannot be made")
    if own in module._buffers:
        module._buffers[own] = value.detach().clone()
    else:
        vars(module)[own] = value.detach().clone()


def settle(model: Any, like: nn.Module, source: Callable[[str], str] = str) -> None:
    """Let the class of a model compute what no checkpoint holds; what it does not know is as in another model.

    Args:
        model: whose weights may be on the meta device.
        like: the other model.
        source: the path there of the module of a path here.
    """
    flagged: list[Any] = [p for p in model.parameters() if not getattr(p, "_is_hf_initialized", False)]
    for p in flagged:
        p._is_hf_initialized = True  # so that no weight is started anew
    for path, module in model.named_modules():
        held = set(module.state_dict())
        own = [name for name, value in module._buffers.items() if value is not None and name not in held]
        for name in own:
            value = like.get_submodule(source(path))._buffers[name]
            module._buffers[name] = None if value is None else value.detach().clone()
        if own:
            model._init_weights(module)
    for p in flagged:
        del p._is_hf_initialized
