"""Plan: what to do to a stack, as plain data. YAML in and out; nothing here touches a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from layerwright.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Steps that turn one order of blocks into another.

    Attributes:
        steps: one-key mappings, done in turn: `drop` (blocks to leave out) or `order` (the blocks to run).
        base: the model the plan was made for.
        why: the evidence, in one sentence.

    Example:
        >>> Plan(({"drop": [1, 2]},)).order(5)
        (0, 3, 4)
    """

    steps: tuple[dict[str, Any], ...]
    base: str = ""
    why: str = ""

    def order(self, depth: int) -> tuple[int, ...]:
        """The source block of each block application after the plan, for a tower of `depth` blocks.

        Raises:
            UserError: a step is unknown or names a block that is not there.
        """
        order = tuple(range(depth))
        for step in self.steps:
            order = _apply(step, order)
        return order

    def to_yaml(self) -> str:
        """The plan as a YAML document."""
        document = {"reshape": 1, "base": self.base, "why": self.why, "steps": [dict(s) for s in self.steps]}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Read a YAML document.

        Raises:
            UserError: it is not a plan.
        """
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"the plan is not YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(document, dict) or document.get("reshape") != 1:
            raise UserError("not a plan: expected a YAML mapping with `reshape: 1` and `steps:`")
        steps = document.get("steps") or []
        if not isinstance(steps, list) or not all(isinstance(s, dict) and len(s) == 1 for s in steps):
            raise UserError("the plan's `steps` must be a list of one-key mappings, such as `- drop: [4, 5]`")
        return cls(tuple(steps), str(document.get("base", "")), str(document.get("why", "")))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a YAML file."""
        try:
            return cls.from_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the plan {path}: {error.strerror}") from None


def _apply(step: dict[str, Any], order: tuple[int, ...]) -> tuple[int, ...]:
    ((name, blocks),) = step.items()
    if name not in ("drop", "order"):
        raise UserError(f"unknown step {name!r} in the plan; this version knows drop and order")
    if not isinstance(blocks, list) or not all(isinstance(b, int) and 0 <= b < len(order) for b in blocks):
        raise UserError(f"step {name}: got {blocks!r}; expected a list of blocks from 0 to {len(order) - 1}")
    if name == "drop":
        return tuple(b for k, b in enumerate(order) if k not in blocks)
    return tuple(order[b] for b in blocks)
