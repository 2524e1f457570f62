"""One file for each solvable model or limit. Importing this package registers them all."""

from __future__ import annotations

import importlib
import pkgutil

from layerwright.theories.towers import tower as tower
from layerwright.theories.words import Act as Act
from layerwright.theories.words import Attention as Attention
from layerwright.theories.words import Conv as Conv
from layerwright.theories.words import Dense as Dense
from layerwright.theories.words import Dropout as Dropout
from layerwright.theories.words import Flatten as Flatten
from layerwright.theories.words import Norm as Norm
from layerwright.theories.words import Pool as Pool
from layerwright.theories.words import Residual as Residual

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
