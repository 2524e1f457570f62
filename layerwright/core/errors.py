"""The one error a user is meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was got, what was expected, what to do."""
