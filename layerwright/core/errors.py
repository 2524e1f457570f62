"""The one error a user is meant to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was got, what was expected, what to do."""


class NeedsModel(UserError):
    """A step of a plan cannot be done on files alone: it needs weights in the form in which the model computes."""

    def __init__(self, what: str) -> None:
        """What needs the model."""
        super().__init__(f"{what} needs the loaded model")


class NotByBlocks(UserError):
    """A checkpoint can only be used as a loaded model."""


@contextmanager
def in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Give errors of these kinds, raised where nobody knows of users, to the user, whose numbers they are about.

    Example:
        >>> with in_one_line(ValueError):
        ...     float("three")
        Traceback (most recent call last):
        ...
        layerwright.core.errors.UserError: could not convert string to float: 'three'
    """
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from None
