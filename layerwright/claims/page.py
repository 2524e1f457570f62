"""The page of the verdicts, from the records of `claims.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from layerwright import report
from layerwright.report.scale import text

_HERE = Path(__file__).parent
_TONES = {"holds": "good", "fails": "act", "inconclusive": "watch"}
_OUTCOMES = {True: "as claimed", False: "not so", None: "undecided"}


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """One HTML page that needs nothing but itself.

    Args:
        records: verdicts, as `claims.json` holds them.

    Example:
        >>> "No claim" in page([])
        True
    """
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": text, "paragraphs": _paragraphs, "tone": lambda word: _TONES.get(word, "watch")}
    style = Path(report.__file__).with_name("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        # The figure is the work of `figure.py`, which escapes what it is given.
        records=[dict(r) | {"figure": Markup(r["figure"] or ""), "reasons": _reasons(r)} for r in records],
        style=Markup(style),
        met=_OUTCOMES,
    )


def _reasons(record: Mapping[str, Any]) -> list[str]:
    """Why a claim does not hold: every number that is not where it should be."""
    return [
        f"{m['meaning']}{' (control)' if m['control'] else ''}: {_OUTCOMES[m['met']]}, {text(m['low'])} to "
        f"{text(m['high'])}{'' if m['unit'] == '1' else ' ' + m['unit']} where {m['expected']} is claimed"
        for m in record["measured"].values()
        if m["expected"] and m["met"] is not True
    ]


def _paragraphs(protocol: str) -> list[tuple[str, str]]:
    """Heading and text of each paragraph of a docstring: `Control: …`."""
    found = []
    for block in protocol.split("\n\n"):
        head, colon, rest = block.partition(": ")
        found.append((head, rest) if colon and " " not in head else ("", block))
    return [(head, " ".join(body.split())) for head, body in found]
