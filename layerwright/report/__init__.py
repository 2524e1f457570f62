"""The HTML report: one page that needs nothing but itself, and a fragment for notebooks.

`sheet` reads a table, `pictures` chooses its drawing and `chart` draws it; `tower` and `summary` make the top of the
page; the templates put them together. The input is the document of `survey.json`, so a page can be made again from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from layerwright.report.beside import beside
from layerwright.report.looks import LOOKS, SECTIONS
from layerwright.report.palette import css
from layerwright.report.pictures import Card, card
from layerwright.report.scale import short, text
from layerwright.report.sheet import Sheet, sheets
from layerwright.report.summary import facts, findings, notes
from layerwright.report.tower import tower

_HERE = Path(__file__).parent
MOST_ROWS = 500


def render(document: Mapping[str, Any]) -> str:
    """The report as a complete HTML page: no network, no outside file, readable without its script.

    Args:
        document: what `survey.json` holds (`Survey.to_dict()`); unknown tables are drawn by their index columns.

    Returns:
        The page. Its size grows with the rows of the tables: about 0.3 MB for 12 blocks, under 6 MB for 200.

    Example:
        >>> page = render({"model": {"name": "tiny", "depth": 2}, "tables": {}, "findings": []})
        >>> "Nothing stands out" in page
        True
    """
    return _environment().get_template("page.html.j2").render(
        _common(document),
        sections=_sections(sheets(document)),
        beside=beside(document),
        facts=facts(document),
        checks=document.get("checks") or [],
        most_rows=MOST_ROWS,
        style=_asset("style.css") + _asset("chart.css") + _asset("tower.css") + _palettes(),
        script=_asset("page.js"),
    )  # fmt: skip


def notebook_html(document: Mapping[str, Any]) -> str:
    """Findings and the picture of the tower as a fragment for `_repr_html_`; its style reaches nothing outside it.

    Args:
        document: as for `render`.

    Returns:
        One `<div>`.

    Example:
        >>> notebook_html({"model": {"name": "tiny", "depth": 2}}).startswith("<div class='lw-survey'>")
        True
    """
    style = _asset("notebook.css") + _asset("tower.css") + Markup(css("light", ".lw-survey "))
    return _environment().get_template("notebook.html.j2").render(_common(document), style=style)


def _common(document: Mapping[str, Any]) -> dict[str, Any]:
    tables, found = sheets(document), findings(document)
    return {
        "model": document.get("model") or {},
        "findings": found,
        "tower": tower(document.get("model") or {}, tables, found),
        "notes": notes(document, tables),
    }


def _sections(tables: Mapping[str, Sheet]) -> list[tuple[str, str, str, list[Card]]]:
    """Key, heading, introduction and cards of each section that has any, in the order of the page."""
    known = list(LOOKS)
    in_order = sorted(tables.values(), key=lambda t: known.index(t.name) if t.name in LOOKS else len(known))
    cards = [card(sheet, tables) for sheet in in_order]
    grouped = [(key, heading, about, [c for c in cards if c.look.section == key]) for key, heading, about in SECTIONS]
    return [section for section in grouped if section[3]]


def _palettes() -> Markup:
    return Markup(css("light") + "@media screen and (prefers-color-scheme:dark){" + css("dark") + "}")


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = text
    environment.filters["short"] = lambda value: text(value) if value is None else short(value)
    environment.filters["cell"] = lambda value: value if isinstance(value, str) else text(value)
    environment.filters["formula"] = _formula
    environment.filters["arxiv"] = _arxiv
    return environment


def _formula(plain: str) -> Markup:
    """A formula with its indices set low: `h_l`, `h_{l+1}`, `‖W‖_F`, but not the underscores of longer names."""
    lowered = re.sub(r"(?<=[\w‖⟩)])(?<!_)_(?:\{([^}]*)\}|(\w)(?!\w))", r"<sub>\1\2</sub>", str(escape(plain)))
    return Markup(lowered)


def _arxiv(paper: Mapping[str, Any]) -> str:
    """The address of a paper, made from its number so that a document cannot smuggle in another kind of link."""
    number = str(paper.get("arxiv") or "")
    return f"https://arxiv.org/abs/{number}" if number and all(c.isalnum() or c in "./-" for c in number) else ""


@cache
def _asset(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8"))
