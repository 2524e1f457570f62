"""Save a model so that others can load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

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
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        write(folder, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
