"""A small batch that a model can take, where only its wiring matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs

_BATCH, _TOKENS = 2, 12


def probe_inputs(model: nn.Module) -> Inputs:
    """Two sequences of random tokens, or two random images, by what the model's class says is its main input.

    Raises:
        UserError: it takes something else.
    """
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    generator = torch.Generator().manual_seed(0)
    name = getattr(model, "main_input_name", None)
    if name == "input_ids" and getattr(text, "vocab_size", None):
        return {"input_ids": torch.randint(0, text.vocab_size, (_BATCH, _TOKENS), generator=generator)}
    size = getattr(config, "image_size", None)
    if name == "pixel_values" and size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        return {
            "pixel_values": torch.randn(_BATCH, getattr(config, "num_channels", 3), height, width, generator=generator)
        }
    raise UserError(f"{type(model).__name__} takes {name or 'inputs of its own'}; give data for it")
