"""The ladder as it was climbed: one rung after the other, each with its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerwright.core.rungs.outcome import FAILED
from layerwright.core.trials import plain


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        number: 1 to 8.
        name: one of `RUNGS`.
        verdict: `passed`, `failed`, `measured` (nothing was required of the numbers) or `not run`.
        finding: one line; where one block is to blame, it is named. With `not run`, the reason.
        limit: what the numbers were held to; empty where they were only measured.
        numbers: plain data.
    """

    number: int
    name: str
    verdict: str
    finding: str
    limit: str
    numbers: Mapping[str, Any]

    def __str__(self) -> str:
        """One line."""
        limit = f"  ({self.limit})" if self.limit else ""
        return f"{self.number} {self.name:<9}  {self.verdict:<8}  {self.finding}{limit}"


@dataclass(frozen=True)
class Ladder:
    """What the checks found, rung by rung.

    Example:
        >>> ladder = Ladder((Rung(1, "structure", "passed", "3 blocks became 2", "", {}),))
        >>> ladder.ok, ladder.failed
        (True, None)
        >>> print(*ladder.lines(), sep=chr(10))
        1 structure  passed    3 blocks became 2
    """

    rungs: tuple[Rung, ...]

    @property
    def ok(self) -> bool:
        """Whether no rung failed."""
        return self.failed is None

    @property
    def failed(self) -> Rung | None:
        """The rung that failed, or None."""
        return next((rung for rung in self.rungs if rung.verdict == FAILED), None)

    def __getitem__(self, name: str) -> Rung:
        """The rung of a name."""
        return next(rung for rung in self.rungs if rung.name == name)

    def lines(self) -> list[str]:
        """One line a rung."""
        return [str(rung) for rung in self.rungs]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"ok": self.ok, "rungs": [plain(vars(rung)) for rung in self.rungs]}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Ladder:
        """The inverse of `to_dict`."""
        return cls(tuple(Rung(**rung) for rung in document["rungs"]))
