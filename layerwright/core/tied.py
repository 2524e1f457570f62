"""Models whose blocks share weights, saved with each shared weight once.

Such a folder has a model type of its own, which transformers refuses where this module is not imported: it would fill
what is not in the file with random numbers. Where it is imported, the Auto classes give a class that is derived from
the base architecture's and knows which weights are one. Blocks stay modules of their own, with their own place in the
cache. No code comes with the folder; what is shared is plain data in `config.json`.
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
from transformers import conversion_mapping
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from layerwright.core.errors import UserError

MODEL_TYPE = "layerwright_tied"
_PREFIX = "Tied"
# What transformers reads from the file in which a class is written: that is the base's.
_BY_FILE = ("is_custom_code", "_can_set_attn_implementation", "_can_set_experts_implementation")


def save_tied(model: nn.Module, folder: Path) -> None:
    """Save a model with each weight that several blocks share once; the model stays as it is.

    Raises:
        UserError: it is no model of transformers, or no weight is shared.
    """
    tied(model).save_pretrained(folder)


def tied(model: nn.Module) -> Any:
    """The model, with the same modules and weights, in the class that knows which of its weights are one.

    Raises:
        UserError: it is no model of transformers, or no weight is shared.
    """
    kind: Any = type(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise UserError(f"{kind.__name__} is no model of transformers, and cannot be saved with shared weights")
    ties = ties_of(model)
    if not ties:
        raise UserError("no two blocks share a weight, so that there is nothing to save once; use --export plain")
    return _shell(tied_class(kind), tied_config(model.config, ties), model)


def plain(model: nn.Module) -> nn.Module:
    """The model in the class of transformers, its blocks still sharing their weights; any other model as it is."""
    if not isinstance(model, _Tied):
        return model
    config: Any = copy.deepcopy(model.config)
    config.__class__ = type(config).plain
    del config.tied
    return _shell(type(model).plain, config, model)


def imports_of(model: nn.Module) -> tuple[str, ...]:
    """What must be imported before transformers can load what the model saves: this module, or nothing."""
    return (__name__,) if isinstance(model, _Tied) else ()


def ties_of(model: nn.Module) -> dict[str, str]:
    """Weights that are one parameter, by name, but for those that its own class ties, such as a head to embeddings.

    Returns:
        For each name but the first of such a group, the first one.
    """
    known = _ties_of_class(model)
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in known:
            groups.setdefault(id(parameter), []).append(name)
    return {name: first for first, *others in groups.values() for name in others}


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


# Classes


class _Tied:
    """What is added to a model class of transformers."""

    plain: type
    config: Any

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The ties of the class, and those of the configuration."""
        above: Any = super()
        return dict(above.get_expanded_tied_weights_keys(all_submodels=all_submodels)) | _placed(self, self.config.tied)

    def _adjust_bias(self, parent: nn.Module, source: Any) -> None:
        """Leave layers that keep their weight the other way round alone: transformers would cut their bias."""
        if isinstance(parent, (nn.Linear, nn.Embedding)):
            above: Any = super()
            above._adjust_bias(parent, source)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Save each weight once, as they are shared now."""
        model: Any = self
        self.config.tied = ties = ties_of(model)
        state = options.pop("state_dict", None) or model.state_dict()
        once = {name: tensor for name, tensor in state.items() if name not in ties}
        above: Any = super()
        above.save_pretrained(save_directory, state_dict=once, **options)


class _TiedEntries:
    """What is added to a configuration class of transformers."""

    plain: type

    def to_dict(self) -> dict[str, Any]:
        """The entries, under a model type that only this module knows."""
        above: Any = super()
        entries: dict[str, Any] = above.to_dict()
        return entries | {"base_model_type": entries["model_type"], "model_type": MODEL_TYPE}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """The configuration of its entries."""
        own = ("model_type", "base_model_type")
        above: Any = super()
        return above.from_dict({k: v for k, v in ({"tied": {}} | config_dict).items() if k not in own}, **options)


class TiedConfig(transformers.PreTrainedConfig):
    """Finds the class of a configuration whose model has shared weights."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the class that the base's is extended to.

        Raises:
            UserError: the base is no architecture of transformers.
        """
        base = config_dict.get("base_model_type")
        if base not in CONFIG_MAPPING:
            raise UserError(f"config.json names the base model type {base!r}, which transformers does not have")
        made = tied_config_class(CONFIG_MAPPING[base])
        _register(made)
        return made.from_dict(config_dict, **kwargs)


@cache
def tied_class(kind: Any) -> Any:
    """The class of models like these with shared weights."""
    if issubclass(kind, _Tied):
        return kind
    body = {"plain": kind, "config_class": tied_config_class(kind.config_class), "__module__": __name__}
    body |= {name: getattr(kind, name) for name in _BY_FILE if hasattr(kind, name)}
    made = type(_PREFIX + kind.__name__, (_Tied, kind), body)
    # Some changes of names between file and model go by the name of the class.
    if (renaming := conversion_mapping.get_checkpoint_conversion_mapping(kind.__name__)) is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(made.__name__, renaming, overwrite=True)
    return made


@cache
def tied_config_class(kind: Any) -> Any:
    """The class of configurations like these of models with shared weights."""
    if issubclass(kind, _TiedEntries):
        return kind
    return type(_PREFIX + kind.__name__, (_TiedEntries, kind), {"plain": kind, "__module__": __name__})


def tied_config(config: Any, ties: Mapping[str, str]) -> Any:
    """A configuration, and which weights are one."""
    made, kind = copy.deepcopy(config), tied_config_class(config.__class__)
    made.__class__, made.tied = kind, dict(ties)
    _register(kind)
    return made


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


def __getattr__(name: str) -> Any:
    """The class with shared weights of any class of transformers, as `TiedLlamaForCausalLM` is of LlamaForCausalLM."""
    kind = getattr(transformers, name.removeprefix(_PREFIX), None) if name.startswith(_PREFIX) else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return tied_class(kind)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedConfig):
        return tied_config_class(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _register(kind: Any) -> None:
    """Let every Auto class that knows the base's configuration know this one."""
    for name in modeling_auto.__all__:
        auto: Any = getattr(modeling_auto, name)
        if not hasattr(auto, "_model_mapping") or kind.plain not in auto._model_mapping:
            continue
        native = auto._model_mapping[kind.plain]
        several = [tied_class(n) for n in (native if isinstance(native, (tuple, list)) else [native])]
        fitting = tuple(n for n in several if n.config_class is kind)
        if fitting:
            auto._model_mapping.register(kind, fitting if len(fitting) > 1 else fitting[0], exist_ok=True)


transformers.AutoConfig.register(MODEL_TYPE, TiedConfig, exist_ok=True)


# Weights


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


def _ties_of_class(model: Any) -> set[str]:
    """Names of weights that the class itself makes one with others."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            kind: Any = getattr(type(module), "plain", type(module))
            names = kind.get_expanded_tied_weights_keys(module)
            found |= {f"{path}.{name}" if path else name for name in names}
    return found


def _placed(model: Any, ties: Any) -> dict[str, str]:
    """The ties by names that the model has: it may have a head that the one that was saved did not have.

    Raises:
        UserError: they name weights that it does not have, or that cannot be one.
    """
    prefix = f"{model.base_model_prefix}."
    known = dict(model.named_parameters(remove_duplicate=False))

    def place(name: str) -> str:
        for other in (name, name.removeprefix(prefix), prefix + name):
            if other in known:
                return other
        raise UserError(f"config.json shares the weight {name!r}, which {type(model).__name__} does not have")

    if not isinstance(ties, dict) or not all(isinstance(name, str) for pair in ties.items() for name in pair):
        raise UserError("the entry `tied` of config.json is no map from names of weights to names of weights")
    found = {place(target): place(source) for target, source in ties.items()}
    for target, source in found.items():
        if source in found or known[target].shape != known[source].shape:
            raise UserError(f"config.json says that {target} and {source} are one weight, which they cannot be")
    return found
