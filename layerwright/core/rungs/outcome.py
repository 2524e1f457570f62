"""What a rung of the ladder found."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

PASSED, FAILED, MEASURED, NOT_RUN = "passed", "failed", "measured", "not run"
_NONE: Mapping[str, Any] = MappingProxyType({})


class Outcome(NamedTuple):
    """What was found, in one line, and the numbers behind it.

    Attributes:
        verdict: `passed`, `failed`, `measured` (nothing was required of the numbers) or `not run`.
        finding: one line; where one block is to blame, it is named. With `not run`, the reason.
        limit: what the numbers were held to; empty where they were only measured.
        numbers: plain data.
    """

    verdict: str
    finding: str
    limit: str = ""
    numbers: Mapping[str, Any] = _NONE


def not_run(reason: str) -> Outcome:
    """A rung that could not be climbed.

    Example:
        >>> not_run("the model gives no logits").verdict
        'not run'
    """
    return Outcome(NOT_RUN, reason)
