"""Save a model so that others can load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.load import quietly


def save_plain(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """Save a model so that plain transformers loads it: a weight that several blocks share is written for each.

    Raises:
        UserError: it has no `save_pretrained`, or refuses.
    """
    write: Any = getattr(model, "save_pretrained", None)
    if write is None:
        raise UserError(f"{type(model).__name__} has no save_pretrained; take the model and save it in your own way")
    with quietly():
        write(folder, state_dict=separate(model))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def separate(model: nn.Module) -> dict[str, Tensor]:
    """The weights, with a copy for every further place of a weight that the model does not declare as tied.

    Only declared ties survive a file: of any other shared weight, transformers would refuse to save the second place.
    """
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    separate = {}
    for name, x in model.state_dict().items():
        separate[name] = x.clone() if x.data_ptr() in seen and name not in declared else x
        seen.add(x.data_ptr())
    return separate
