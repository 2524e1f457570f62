"""Layerwright measures, explains and reshapes the depth and width of neural networks.

This page is a table of contents. Names are imported when they are first used: importing the package does not import
torch, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for readers and type checkers; at run time `__getattr__` does the same, later
    from layerwright import theories as theories
    from layerwright.core.data import Data as Data
    from layerwright.core.data import load_data as load_data
    from layerwright.core.errors import UserError as UserError
    from layerwright.core.load import load_model as load_model
    from layerwright.core.plan import Plan as Plan
    from layerwright.core.planner import planner as planner
    from layerwright.core.registry import measure as measure
    from layerwright.core.reshape import Reshaped as Reshaped
    from layerwright.core.stack import Stack as Stack
    from layerwright.core.survey import Survey as Survey
    from layerwright.verbs import predict as predict
    from layerwright.verbs import propose as propose
    from layerwright.verbs import reshape as reshape
    from layerwright.verbs import survey as survey
    from layerwright.verbs import train as train
    from layerwright.verbs import verify as verify
    from layerwright.verbs.callback import Callback as Callback
    from layerwright.verbs.propagating import signal_propagation as signal_propagation
    from layerwright.verbs.tangents import tangent_kernel as tangent_kernel
    from layerwright.verbs.tangents import tangent_operator as tangent_operator
    from layerwright.verbs.watching import watch as watch

_HOMES = {
    "survey": "verbs",
    "predict": "verbs",
    "propose": "verbs",
    "reshape": "verbs",
    "verify": "verbs",
    "train": "verbs",
    "watch": "verbs.watching",
    "tangent_kernel": "verbs.tangents",
    "tangent_operator": "verbs.tangents",
    "Callback": "verbs.callback",
    "signal_propagation": "verbs.propagating",
    "Reshaped": "core.reshape",
    "planner": "core.planner",
    "Survey": "core.survey",
    "Stack": "core.stack",
    "Plan": "core.plan",
    "Data": "core.data",
    "UserError": "core.errors",
    "load_data": "core.data",
    "load_model": "core.load",
    "measure": "core.registry",
}

_ROOMS = ("theories",)

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"layerwright.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'layerwright' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layerwright.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
