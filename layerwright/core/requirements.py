"""What the `verify:` section of a plan may ask for, and with which options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerwright.core.errors import UserError
from layerwright.core.registry import nearest

# Entry -> its options and what they must be. Each entry asks for one rung of the ladder to hold to a number.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "decode": {"tokens": int},
    "drift": {"min_cosine": float, "max_divergence": float},
    "loss": {"max_ratio": float},
    "latency": {"max_ratio": float, "batch": list, "tokens": int},
    "control": {"plans": int},
}
_WORDS = {int: "a whole number of at least 1", float: "a number", list: "a list of whole numbers of at least 1"}


def check_requirements(verify: Any, steps: Sequence[str]) -> None:
    """Hold a `verify:` section against what can be asked for.

    Args:
        verify: the section: `exact` (a list of the plan's steps), `reload` (`plain`), or a mapping of options by entry.
        steps: names of the plan's steps.

    Raises:
        UserError: an entry, an option or a value is not one of those.
    """
    if not isinstance(verify, Mapping):
        raise UserError(f"got `verify: {verify!r}`; expected a mapping, such as `verify: {{decode: {{tokens: 32}}}}`")
    for name, value in verify.items():
        if name == "exact":
            _check_exact(value, steps)
        elif name == "reload":
            if value != "plain":
                raise UserError(f"got `reload: {value!r}`; expected `reload: plain`")
        elif name not in _OPTIONS:
            known = ["exact", "reload", *_OPTIONS]
            raise UserError(f"unknown requirement {name!r}; did you mean {nearest(str(name), known)!r}?")
        elif not isinstance(value, Mapping):
            raise UserError(f"got `{name}: {value!r}`; expected a mapping of {', '.join(_OPTIONS[name])}")
        else:
            for option, given in value.items():
                _check_option(name, str(option), given)


def _check_exact(value: Any, steps: Sequence[str]) -> None:
    if not isinstance(value, list) or not value:
        raise UserError(f"got `exact: {value!r}`; expected a list of steps of the plan, such as `exact: [insert]`")
    for name in value:
        if name not in steps:
            raise UserError(f"`exact` names {name!r}, no step of the plan: {', '.join(steps) or 'it has none'}")


def _check_option(name: str, option: str, given: Any) -> None:
    known = _OPTIONS[name]
    if option not in known:
        raise UserError(f"requirement {name}: unknown option {option!r}; did you mean {nearest(option, known)!r}?")
    kind = known[option]
    items = given if kind is list and isinstance(given, list) and given else [given]
    wanted = float if kind is float else int
    for item in items:
        good = isinstance(item, (int, wanted)) and not isinstance(item, bool) and (wanted is float or item >= 1)
        if not good or (kind is list and not isinstance(given, list)):
            raise UserError(f"requirement {name}: got {option} {given!r}; expected {_WORDS[kind]}")
