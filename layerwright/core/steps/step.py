"""What a step is: a function from a draft and options to the next draft, registered under its own name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layerwright.core.draft import Draft
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.registry import nearest

Function = Callable[..., Draft]
PRESERVING = ("exact", "approximate", "none")
BY_OPTIONS = "by options"


@dataclass(frozen=True)
class Step:
    """A registered step.

    Attributes:
        name: in plans.
        function: from a draft and options to a draft.
        options: their names and defaults; `inspect.Parameter.empty` where one must be given.
        preserving: whether the model that comes out computes the same: `exact` but for rounding, `approximate`, `none`,
            or a function that tells which from the options.
        chooses: whether it only says which blocks run, and leaves their weights as they are.
        title: one line.
    """

    name: str
    function: Function
    options: Mapping[str, Any]
    preserving: str | Callable[..., str]
    chooses: bool
    title: str

    @property
    def keeps(self) -> str:
        """What it leaves of the function, in words."""
        return self.preserving if isinstance(self.preserving, str) else BY_OPTIONS


STEPS: dict[str, Step] = {}


def step(*, preserving: str | Callable[..., str], chooses: bool = False) -> Callable[[Function], Function]:
    """Register a function as a step. Its first argument is the draft, the others are options by keyword.

    Raises:
        ValueError: the name is taken, or `preserving` is not one of `exact`, `approximate`, `none`.
    """
    if isinstance(preserving, str) and preserving not in PRESERVING:
        raise ValueError(f"preserving {preserving!r}: expected one of {', '.join(PRESERVING)}")

    def register(function: Function) -> Function:
        name = function.__name__
        if name in STEPS and STEPS[name].function.__module__ != function.__module__:
            raise ValueError(f"step {name!r} is registered twice")
        title = (inspect.getdoc(function) or "").splitlines()[0].rstrip(".")
        options = {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}
        STEPS[name] = Step(name, function, options, preserving, chooses, title)
        return function

    return register


def check_step(given: Any) -> None:
    """Hold a step of a plan against what is known.

    Raises:
        UserError: it is no one-key mapping, or the step or an option is unknown or missing.
    """
    if not isinstance(given, dict) or len(given) != 1:
        raise UserError(f"got the step {given!r}; expected a one-key mapping, such as `- drop: [4, 5]`")
    ((name, _),) = given.items()
    if name not in STEPS:
        raise UserError(f"unknown step {name!r} in the plan; did you mean {nearest(str(name), STEPS)!r}?")
    known, options = STEPS[name].options, _options(given)
    for option in options:
        if option not in known:
            raise UserError(
                f"step {name}: unknown option {option!r}; did you mean {nearest(str(option), known)!r}? It takes "
                f"{', '.join(known)}"
            )
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise UserError(f"step {name}: option {option!r} is missing; it takes {', '.join(known)}")


def apply_step(draft: Draft, given: Mapping[str, Any]) -> Draft:
    """The draft after a step.

    Raises:
        UserError: the step cannot be done on this draft.
    """
    ((name, _),) = given.items()
    try:
        return STEPS[name].function(draft, **_options(given))
    except NeedsModel:
        raise
    except UserError as error:
        raise UserError(f"step {name}: {error}") from None


def preserved_by(given: Mapping[str, Any]) -> str:
    """What a step of a plan leaves of the function: `exact`, `approximate` or `none`.

    Example:
        >>> from layerwright.core.steps import preserved_by
        >>> preserved_by({"insert": [3]}), preserved_by({"fold": {"norms": True}}), preserved_by({"drop": [3]})
        ('exact', 'exact', 'none')
    """
    ((name, _),) = given.items()
    known = STEPS[name]
    return known.preserving if isinstance(known.preserving, str) else known.preserving(**_all_options(given))


def only_order(steps: Iterable[Mapping[str, Any]], depth: int) -> tuple[int, ...]:
    """Which blocks of a tower run after steps that only choose among them.

    Raises:
        UserError: a step changes weights, or cannot be done.
    """
    draft = Draft.bare(depth)
    for given in steps:
        ((name, _),) = given.items()
        if not STEPS[name].chooses:
            raise UserError(f"step {name} changes weights: an order of blocks does not say what the model will be")
        draft = apply_step(draft, given)
    return tuple(block.source for block in draft.blocks)


def _all_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a step, defaults where the plan says nothing."""
    ((name, _),) = given.items()
    return {**STEPS[name].options, **_options(given)}


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says after the name of a step: options by name, or the value of the first."""
    ((name, value),) = given.items()
    if isinstance(value, dict):
        return value
    return {next(iter(STEPS[name].options)): value}
