"""Exports of models whose blocks share weights: plain, or with each shared weight in the file once.

The classes of the second kind of folder are in `modeling_layerwright_tied.py`. It has a model type of its own, which
transformers refuses where this module is not imported: it would fill what is not in the file with random numbers. Where
it is imported, the Auto classes know those classes, and what is shared is plain data in `config.json`. A remote export
is such a folder with a copy of that file, for who has transformers alone; here, the copy is never run.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from layerwright.core import modeling_layerwright_tied as modeling
from layerwright.core.errors import UserError
from layerwright.core.modeling_layerwright_tied import MODEL_TYPE, PREFIX, TiedConfig, tied_class, tied_config_class
from layerwright.core.modeling_layerwright_tied import __getattr__ as __getattr__
from layerwright.core.modeling_layerwright_tied import brings_code as brings_code
from layerwright.core.modeling_layerwright_tied import ties_of as ties_of
from layerwright.core.registry import nearest

EXPORTS = ("plain", "tied", "remote")
CODE = Path(modeling.__file__)
WARNING = (
    f"warning: the folder holds Python code, {CODE.name}, and who loads it with trust_remote_code=True runs that; "
    "the safe form is --export plain, which is larger and needs no code"
)


def check_export(name: str) -> None:
    """Refuse an export that there is not.

    Raises:
        UserError: there is none of that name; the nearest is suggested.

    Example:
        >>> check_export("remote")
    """
    if name not in EXPORTS:
        raise UserError(
            f"unknown export {name!r}; did you mean {nearest(name, EXPORTS)!r}? There are {', '.join(EXPORTS)}"
        )


def exported(model: nn.Module, export: str) -> nn.Module:
    """The model, with the same modules and weights, in the class that is saved in that way.

    Raises:
        UserError: it cannot be saved in that way.
    """
    return model if export == "plain" else tied(model, code=export == "remote")


def save_tied(model: nn.Module, folder: Path, *, code: bool = False) -> None:
    """Save a model with each weight that several blocks share once; the model stays as it is.

    Raises:
        UserError: it is no model of transformers, or no weight is shared.
    """
    tied(model, code=code).save_pretrained(folder)


def tied(model: nn.Module, *, code: bool = False) -> Any:
    """The model, with the same modules and weights, in the class that knows which of its weights are one.

    Args:
        model: of transformers.
        code: save the file with those classes as well.

    Raises:
        UserError: it is no model of transformers, or no weight is shared.
    """
    model = plain(model)
    kind: Any = type(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise UserError(f"{kind.__name__} is no model of transformers, and cannot be saved with shared weights")
    return _shell(*with_ties(kind, model.config, ties_of(model), code=code), model)


def with_ties(kind: Any, config: Any, ties: Mapping[str, str], *, code: bool = False) -> tuple[Any, Any]:
    """Class and configuration of a model of transformers when some of its weights are one.

    Args:
        kind: class of the model.
        config: its configuration, which stays as it is.
        ties: as `ties_of` gives them.
        code: name the file with those classes in the configuration, which saves it as well.

    Raises:
        UserError: there are no ties, the class is not of transformers, or no Auto class would find it in the file.
    """
    if not ties:
        raise UserError("no two blocks share a weight, so that there is nothing to save once; use --export plain")
    name = kind.__name__
    if getattr(transformers, name, None) is not kind:
        raise UserError(f"{name} is no class of transformers' own, for which only --export plain does")
    made, extended = copy.deepcopy(config), tied_config_class(config.__class__)
    made.__class__, made.tied, made.architectures = extended, dict(ties), [PREFIX + name]
    # One that is there is for code of the base's own, which knows nothing of ties.
    made.__dict__.pop("auto_map", None)
    if code:
        made.auto_map = _auto_map(kind)
    _register(extended)
    return tied_class(kind), made


def plain(model: nn.Module) -> nn.Module:
    """The model in the class of transformers, its blocks still sharing their weights; any other model as it is."""
    if not _is_tied(model):
        return model
    kind: Any = type(model)
    config: Any = copy.deepcopy(model.config)
    config.__class__ = type(config).plain
    for entry in ("tied", "auto_map"):
        config.__dict__.pop(entry, None)
    return _shell(kind.plain, config, model)


def imports_of(model: nn.Module) -> tuple[str, ...]:
    """What must be imported before transformers can load what the model saves: this module, or nothing."""
    return (__name__,) if _is_tied(model) and not brings_code(model.config) else ()


def numbered(model: nn.Module, paths: Iterable[str]) -> list[dict[str, int]]:
    """The numbers of shared weights, block by block, by their names in the block: the same number is one weight."""
    blocks = [dict(model.get_submodule(path).named_parameters(remove_duplicate=False)) for path in paths]
    counts = Counter(key for block in blocks for key in {id(p) for p in block.values()})
    numbers = {key: n for n, key in enumerate(key for key, count in counts.items() if count > 1)}
    return [{name: numbers[id(p)] for name, p in block.items() if id(p) in numbers} for block in blocks]


def ties_between(numbers: Iterable[Mapping[str, int]], paths: Iterable[str]) -> dict[str, str]:
    """The same from the numbers, as steps of a plan give them, and the paths of the blocks.

    Returns:
        For each name but the first of those with one number, the first one.

    Example:
        >>> ties_between([{"w": 0}, {"w": 0, "b": 1}], ["layers.0", "layers.1"])
        {'layers.1.w': 'layers.0.w'}
    """
    first: dict[int, str] = {}
    named = [(f"{path}.{name}", number) for path, block in zip(paths, numbers) for name, number in block.items()]
    return {name: first[number] for name, number in named if first.setdefault(number, name) != name}


def class_of(config: Mapping[str, Any]) -> Any:
    """The class of the model that a `config.json` of this kind describes; None where it is of another kind.

    Raises:
        UserError: it names no architecture that transformers has.
    """
    if config.get("model_type") != MODEL_TYPE:
        return None
    name = str((config.get("architectures") or [""])[0])
    try:
        return __getattr__(name)
    except AttributeError:
        raise UserError(f"config.json names the architecture {name!r}, which transformers does not have") from None


def _is_tied(model: nn.Module) -> bool:
    """Whether its class knows ties: one of ours, or one that the file in a folder made."""
    return isinstance(getattr(type(model), "plain", None), type)


def _shell(kind: Any, config: Any, model: Any) -> Any:
    """A model of another class and configuration around the parts of this one."""
    with torch.device("meta"):
        made = kind(config)
    for held in ("_parameters", "_buffers", "_modules"):
        setattr(made, held, dict(getattr(model, held)))
    if (generation := getattr(model, "generation_config", None)) is not None:
        made.generation_config = copy.deepcopy(generation)
    made.training = model.training
    return made


# What the Auto classes know


class _KnownConfig(TiedConfig):
    """Lets the Auto classes know the models of a configuration that is read."""

    @classmethod
    def extended(cls, base: Any) -> Any:
        """The class that the configurations of a model type are extended to."""
        kind = super().extended(base)
        _register(kind)
        return kind


transformers.AutoConfig.register(MODEL_TYPE, _KnownConfig, exist_ok=True)


@cache
def _register(kind: Any) -> None:
    """Let every Auto class that knows the base's configuration know this one."""
    for auto, several in _auto_classes(kind.plain).items():
        fitting = tuple(tied_class(native) for native in several)
        auto._model_mapping.register(kind, fitting if len(fitting) > 1 else fitting[0], exist_ok=True)


def _auto_map(kind: Any) -> dict[str, str]:
    """For every Auto class that knows the base's configuration, what it is to look for in the file.

    Raises:
        UserError: none of them loads the model as what it is.
    """
    known = _auto_classes(kind.config_class)
    if not any(kind in several for several in known.values()):
        raise UserError(f"no Auto class of transformers loads {kind.__name__}, which --export remote needs; use tied")
    names = {auto.__name__: (kind if kind in several else several[0]).__name__ for auto, several in known.items()}
    models = {auto: f"{CODE.stem}.{PREFIX}{name}" for auto, name in names.items()}
    return {"AutoConfig": f"{CODE.stem}.{TiedConfig.__name__}"} | models


def _auto_classes(config_class: Any) -> dict[Any, list[Any]]:
    """Auto classes that know a configuration of transformers, and the models of which each takes one."""
    found: dict[Any, list[Any]] = {}
    for name in modeling_auto.__all__:
        auto: Any = getattr(modeling_auto, name)
        if hasattr(auto, "_model_mapping") and config_class in auto._model_mapping:
            native = auto._model_mapping[config_class]
            several = native if isinstance(native, (tuple, list)) else [native]
            found[auto] = [kind for kind in several if kind.config_class is config_class]
    return {auto: several for auto, several in found.items() if several}
