"""Arrays and options as a theory may be given them: of the right kind; what they may be is for the theory to say."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerwright.core.errors import UserError

_NUMPY = (np.generic, np.ndarray)


def check_real(array: str, value: Any) -> None:
    """Refuse what is no array of real numbers; its shape and its numbers are for the theory to judge."""
    if value is None:
        return
    try:
        kind = np.asarray(value).dtype
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths; a tensor with a gradient
        raise UserError(f"got {array} that is no array ({error}); expected real numbers") from None
    if kind.kind not in "biuf":
        raise UserError(f"got {array} of type {kind}; expected real numbers")


def of_kind(option: str, value: Any, default: Any) -> Any:
    """Names stay names, numbers numbers, and one number is a list of one; what they may be is for the theory to say."""
    listed, value = isinstance(default, (tuple, list)), value.tolist() if isinstance(value, _NUMPY) else value
    if value is None and default is None:
        return value
    if isinstance(default, str):
        if not (isinstance(value, str) or callable(value)):
            raise UserError(f"got {option}={value}; expected a name")
        return value
    numbers = list(value) if listed and isinstance(value, (tuple, list)) else [value]
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers):
        raise UserError(f"got {option}={value}; expected {'numbers, as in [3, 2, 1]' if listed else 'a number'}")
    if option == "seed" and not (isinstance(value, int) and 0 <= value < 2**63):
        raise UserError(f"got seed={value}; expected a whole number from 0 on")
    return numbers if listed else value
