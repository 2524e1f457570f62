"""The one error a user is meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was got, what was expected, what to do."""


class NeedsModel(UserError):
    """A step of a plan cannot be done on files alone: it needs weights in the form in which the model computes."""

    def __init__(self, what: str) -> None:
        """What needs the model."""
        super().__init__(f"{what} needs the loaded model")


class NotByBlocks(UserError):
    """A checkpoint can only be used as a loaded model."""
