"""Modules without weights, for what their shapes and names tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLING = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.constant_}


class _Undrawn(TorchFunctionMode):
    """Leaves out the functions that fill new weights, which on the meta device take half the time of making a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (args[0] if args else kwargs["tensor"]) if func in _FILLING else func(*args, **kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made meanwhile are on the meta device; no numbers are drawn for what has none."""
    with torch.device("meta"), _Undrawn():
        yield
