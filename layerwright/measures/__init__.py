"""One file for each measured quantity. Importing this package registers them all and checks every argument name."""

from __future__ import annotations

import importlib
import pkgutil

from layerwright.core.registry import check_names

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
check_names()
