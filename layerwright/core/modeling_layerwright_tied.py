"""Models of transformers some of whose blocks share weights, with each shared weight in the file once.

This is all that loading such a folder takes. layerwright (Apache-2.0) puts a copy of this file into a folder that is
saved with `--export remote`, and who loads that folder with `trust_remote_code=True` runs it. It needs torch and
transformers, reads and sends nothing by itself, and only makes classes: each is derived from the base architecture's,
and knows from the entry `tied` of `config.json` which weights are one. Blocks stay modules of their own, with their own
place in the cache.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MODEL_TYPE = "layerwright_tied"
PREFIX = "Tied"
# What transformers reads from the file in which a class is written: that is the base's.
_BY_FILE = ("is_custom_code", "_can_set_attn_implementation", "_can_set_experts_implementation")


class TiedModel:
    """What is added to a model class of transformers."""

    plain: type
    config: Any

    @classmethod
    def from_pretrained(cls, *source: Any, **options: Any) -> Any:
        """Load a model. Who does not ask for the loading info gets no random numbers in place of shared weights.

        Raises:
            ValueError: a weight that blocks share is not in the file.
        """
        above: Any = super()
        if options.get("output_loading_info"):
            return above.from_pretrained(*source, **options)
        model, found = above.from_pretrained(*source, **(options | {"output_loading_info": True}))
        shared = _placed(model, model.config.tied)
        if lost := sorted({*shared, *shared.values()} & set(found["missing_keys"])):
            raise ValueError(f"{len(lost)} weights that blocks share are missing in the file, as {lost[0]}")
        return model

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


class TiedEntries:
    """What is added to a configuration class of transformers."""

    plain: type

    def to_dict(self) -> dict[str, Any]:
        """The entries, under a model type that transformers does not have."""
        above: Any = super()
        entries: dict[str, Any] = above.to_dict()
        return entries | {"base_model_type": entries["model_type"], "model_type": MODEL_TYPE}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """The configuration of its entries."""
        own = ("model_type", "base_model_type")
        above: Any = super()
        return above.from_dict({k: v for k, v in ({"tied": {}} | config_dict).items() if k not in own}, **options)

    def save_pretrained(self, save_directory: Any, *rest: Any, **options: Any) -> None:
        """Save the entries, and this file beside them if they name it."""
        above: Any = super()
        above.save_pretrained(save_directory, *rest, **options)
        if brings_code(self):
            shutil.copyfile(__file__, Path(save_directory) / Path(__file__).name)


class TiedConfig(transformers.PreTrainedConfig):
    """Finds the class of a configuration whose model has shared weights."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the class that the base's is extended to.

        Raises:
            ValueError: the base is no architecture of transformers.
        """
        return cls.extended(config_dict.get("base_model_type")).from_dict(config_dict, **kwargs)

    @classmethod
    def extended(cls, base: Any) -> Any:
        """The class that the configurations of a model type are extended to."""
        if base not in CONFIG_MAPPING:
            raise ValueError(f"config.json names the base model type {base!r}, which transformers does not have")
        return tied_config_class(CONFIG_MAPPING[base])


def brings_code(config: Any) -> bool:
    """Whether this file is saved beside such a configuration, for who has nothing else to load it with."""
    named = getattr(config, "auto_map", None)
    return isinstance(named, dict) and named.get("AutoConfig") == f"{Path(__file__).stem}.{TiedConfig.__name__}"


@cache
def tied_class(kind: Any) -> Any:
    """The class of models like these with shared weights."""
    if issubclass(kind, TiedModel):
        return kind
    body = {"plain": kind, "config_class": tied_config_class(kind.config_class), "__module__": __name__}
    body |= {name: getattr(kind, name) for name in _BY_FILE if hasattr(kind, name)}
    made = type(PREFIX + kind.__name__, (TiedModel, kind), body)
    # Some changes of names between file and model go by the name of the class.
    if (renaming := conversion_mapping.get_checkpoint_conversion_mapping(kind.__name__)) is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(made.__name__, renaming, overwrite=True)
    return made


@cache
def tied_config_class(kind: Any) -> Any:
    """The class of configurations like these of models with shared weights."""
    if issubclass(kind, TiedEntries):
        return kind
    return type(PREFIX + kind.__name__, (TiedEntries, kind), {"plain": kind, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """The class with shared weights of any class of transformers, as `TiedLlamaForCausalLM` is of LlamaForCausalLM."""
    kind = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return tied_class(kind)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedConfig):
        return tied_config_class(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Which weights are one


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
        ValueError: they name weights that it does not have, or that cannot be one.
    """
    prefix = f"{model.base_model_prefix}."
    known = dict(model.named_parameters(remove_duplicate=False))

    def place(name: str) -> str:
        for other in (name, name.removeprefix(prefix), prefix + name):
            if other in known:
                return other
        made = f"{type(model).__name__} of transformers {transformers.__version__}"
        raise ValueError(f"config.json shares the weight {name!r}, which {made} does not have")

    if not isinstance(ties, dict) or not all(isinstance(name, str) for pair in ties.items() for name in pair):
        raise ValueError("the entry `tied` of config.json is no map from names of weights to names of weights")
    found = {place(target): place(source) for target, source in ties.items()}
    for target, source in found.items():
        if source in found or known[target].shape != known[source].shape:
            raise ValueError(f"config.json says that {target} and {source} are one weight, which they cannot be")
    return found
