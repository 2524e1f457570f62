"""Plan: what to do to a stack, as plain data. YAML in and out; nothing here touches a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.yaml_numbers import Loader

# A plan of a model of a thousand blocks is some kilobytes; what is longer than this is no plan.
_LONGEST = 2**20
_KEYS = ("reshape", "base", "why", "steps", "verify")


@dataclass(frozen=True)
class Plan:
    """Steps that turn one order of blocks into another, and what the result must stand up to.

    Attributes:
        steps: one-key mappings, done in turn; `lw list steps` shows all. A step counts blocks from 0, in the order that
            the step before it left; slices are end-exclusive.
        base: the model the plan was made for.
        why: the evidence, in one sentence.
        verify: what the result must stand up to, by rung of the ladder (`core/verify.py`).
        sha256: of the base, which then is the only model that the plan is applied to; empty for any.

    Example:
        >>> plan = Plan(({"drop": [1, 2]}, {"loop": {"blocks": "1:3", "times": 2}}))
        >>> plan.order(5)
        (0, 3, 4, 3, 4)
        >>> Plan.from_yaml(plan.to_yaml()) == plan
        True
    """

    steps: tuple[dict[str, Any], ...]
    base: str = ""
    why: str = ""
    verify: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        """Take steps as a list too, and hold each against what its step knows.

        Raises:
            UserError: a step or a requirement is unknown, or its options are.
        """
        from layerwright.core.requirements import check_requirements
        from layerwright.core.steps import check_step

        given: Any = self.steps
        if not isinstance(given, (list, tuple)):
            raise UserError(f"got steps {self.steps!r}; expected a list of one-key mappings, such as `- drop: [4, 5]`")
        object.__setattr__(self, "steps", tuple(given))
        for step in self.steps:
            check_step(step)
        check_requirements(self.verify, [name for step in self.steps for name in step])

    def order(self, depth: int) -> tuple[int, ...]:
        """The source block of each block application after the plan, for a tower of `depth` blocks.

        Raises:
            UserError: a step names a block that is not there, or makes blocks that are none of the base's.
        """
        from layerwright.core.steps import only_order

        return only_order(self.steps, depth)

    @property
    def digest(self) -> str:
        """A hash of the steps: plans that do the same in the same words have the same."""
        return hashlib.sha256(json.dumps(self.steps, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        document: dict[str, Any] = {
            "reshape": 1,
            "base": {"model": self.base, "sha256": self.sha256} if self.sha256 else self.base,
            "why": self.why,
            "steps": [dict(s) for s in self.steps],
        }
        if self.verify:
            document["verify"] = dict(self.verify)
        return document

    def to_yaml(self) -> str:
        """The plan as a YAML document."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Read a YAML document: a plan, or the list of blocks that another tool wrote (`core/foreign.py`).

        Raises:
            UserError: it is no plan.
        """
        from layerwright.core.foreign import translated

        document = _parsed(text)
        if isinstance(document, dict) and "reshape" in document:
            return cls._from(document)
        if (known := translated(document)) is not None:
            return cls(*known)
        raise UserError(
            "not a plan: expected a YAML mapping with `reshape: 1` and `steps:`, a passthrough merge (`slices:`), a "
            "`layer_replication:` or `stacking_list:` entry, or a plain list of blocks"
        )

    @classmethod
    def _from(cls, document: Mapping[str, Any]) -> Plan:
        if document["reshape"] != 1:
            raise UserError(f"got a plan of form {document['reshape']!r}; this version reads `reshape: 1`")
        if unknown := [key for key in document if key not in _KEYS]:
            raise UserError(f"the plan has an unknown entry {unknown[0]!r}; expected {', '.join(_KEYS)}")
        base, verify = document.get("base") or "", document.get("verify") or {}
        if not isinstance(base, dict):
            base = {"model": base}
        if not isinstance(verify, dict):
            raise UserError(
                f"got `verify: {verify!r}`; expected a mapping, such as `verify: {{decode: {{tokens: 32}}}}`"
            )
        steps: Any = document.get("steps") or []
        return cls(
            steps, str(base.get("model", "")), str(document.get("why") or ""), verify, str(base.get("sha256", ""))
        )

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a YAML (or JSON) file.

        Raises:
            UserError: it cannot be read, or holds no plan.
        """
        try:
            with Path(path).open(encoding="utf-8") as stream:
                text = stream.read(_LONGEST + 1)
        except OSError as error:
            raise UserError(f"cannot read the plan {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"the plan {path} is not text; expected YAML") from None
        return cls.from_yaml(text)

    def save(self, path: str | Path) -> None:
        """Write a YAML file.

        Raises:
            UserError: it cannot be written.
        """
        path = Path(path)
        write_files(path.parent, {path.name: self.to_yaml})


class _Loader(Loader):
    """YAML without tags that make objects, and without aliases, with which ten lines can ask for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse `*name`."""
        if self.check_event(yaml.AliasEvent):
            raise UserError("the plan uses a YAML alias (*name); write the value out")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """What is said twice is written twice: the reader takes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out."""
        return True


def _parsed(text: str) -> Any:
    if len(text) > _LONGEST:
        raise UserError(f"the plan is longer than {_LONGEST >> 20} MiB; expected a list of steps")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError("the plan is nested too deeply; expected a list of steps") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"the plan is not YAML: {str(error).splitlines()[0]}") from None
