"""YAML as people write it: 1e-3 is a number."""

from __future__ import annotations

import re

import yaml

_POWER_OF_TEN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Loader(yaml.SafeLoader):
    """Takes 1e-3 for the number that it is everywhere but in YAML 1.1, which wants a point in it.

    Example:
        >>> yaml.load("[1e-3, 1.0e-3, 2E+2, e-3]", Loader)
        [0.001, 0.001, 200.0, 'e-3']
    """


Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER_OF_TEN, list("+-.0123456789"))
