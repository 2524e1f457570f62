"""The page as text: well formed, self-contained, escaped, complete, and true to the numbers."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser
from typing import Any

import pytest

from layerwright.report import notebook_html, render
from layerwright.report.scale import text

VOID = {"meta", "link", "input", "br", "img"}
HOSTILE = """<script>alert(1)</script>"><img src=x onerror='alert(2)'>"""


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in its turn; remembers elements and the text of titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.titles: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles[-1] += data


def card(html: str, name: str) -> str:
    """The part of a page that shows one table."""
    return html[html.index(f'id="table-{name}"') :].split("</article>")[0]


@pytest.mark.parametrize("which", ["llama", "minimal"])
def test_well_formed(which: str, request: pytest.FixtureRequest) -> None:
    page = Page(render(request.getfixturevalue(which)))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.elements if (a.get("href") or "").startswith("#")]
    assert set(targets) <= set(ids)
    assert {a["for"] for tag, a in page.elements if tag == "label"} <= set(ids)


def test_loads_nothing(llama: dict[str, Any]) -> None:
    html = render(llama)
    for tag, attributes in Page(html).elements:
        assert "src" not in attributes
        assert tag not in ("iframe", "object", "embed", "img")
        if tag == "link":
            assert attributes["href"] == "data:,"
        if tag == "a" and not attributes["href"].startswith("#"):
            assert re.fullmatch(r"https://arxiv\.org/abs/[\d.]+", attributes["href"])
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_size(llama: dict[str, Any], llama_of_depth: Any) -> None:
    assert len(render(llama).encode()) < 0.6e6
    assert len(render(llama_of_depth(200)).encode()) < 6e6


def test_hostile_names_stay_text(llama: dict[str, Any], new_table: Any) -> None:
    document = copy.deepcopy(llama)
    document["model"] |= {"name": HOSTILE, "blocks": HOSTILE, "class": HOSTILE}
    document["data"]["source"] = HOSTILE
    document["notes"] = [HOSTILE]
    document["checks"][0] |= {"name": HOSTILE, "note": HOSTILE}
    document["findings"][0] |= {
        "title": HOSTILE,
        "evidence": [HOSTILE],
        "advice": HOSTILE,
        "plan": HOSTILE,
        "tone": HOSTILE,
    }
    table = new_table("block matrix", [[b, f"{HOSTILE}{m}"] for b in range(3) for m in range(2)])
    table |= {"title": HOSTILE, "definition": HOSTILE, "formula": HOSTILE, "unit": HOSTILE}
    table["paper"] = {"arxiv": "javascript:alert(3)//", "title": HOSTILE, "year": HOSTILE}
    document["tables"][HOSTILE] = table
    for html in (render(document), notebook_html(document)):
        page = Page(html)
        tags = Counter(tag for tag, _ in page.elements)
        assert tags["script"] <= 1
        assert tags["img"] == 0
        assert "<script>alert" not in html
        assert not any((a.get("href") or "").startswith("javascript") for _, a in page.elements)
        assert not any(name.startswith("on") for _, a in page.elements for name in a)


def test_order_of_the_page(llama: dict[str, Any]) -> None:
    html = render(llama)
    places = [
        html.index(f'<section id="{key}"')
        for key in ("findings", "tower", "stream", "angles", "lens", "skips", "weights")
    ]
    assert places == sorted(places)
    for finding in llama["findings"]:
        assert html.index(finding["title"]) < places[1]
        assert finding["evidence"][0] in html
    assert llama["findings"][0]["plan"].splitlines()[3] in html


def test_head_says_what_was_surveyed(llama: dict[str, Any], minimal: dict[str, Any]) -> None:
    html = render(llama)
    for fact in (
        "demo",
        "LlamaForCausalLM",
        "9,437,440",
        "held-out files",
        "4,096 tokens",
        "standard",
        "2 of 2 passed",
    ):
        assert fact in html
    bare = render(minimal)
    assert "1 of 1 self-tests failed" in bare
    assert "logit_lens was not run" in bare
    assert "Nothing stands out." in bare


def test_every_table_has_definition_formula_and_numbers(llama: dict[str, Any]) -> None:
    html = render(llama)
    for name, table in llama["tables"].items():
        here = card(html, name)
        assert table["definition"] in here
        lowered = re.sub(r"_(?:\{(.*?)\}|(\w))(?!\w)", r"<sub>\1\2</sub>", escape(table["formula"], quote=False))
        assert lowered.replace("'", "&#39;") in here
        assert "<dt>Unit</dt>" in here
        assert "at least 0" in here
        assert here.count("<tr>") == len(table["rows"]) + 1
        if table["paper"]:
            assert f'href="https://arxiv.org/abs/{table["paper"]["arxiv"]}"' in here
    assert "4,096 a row" in card(html, "logit_lens")


def test_marks_carry_the_numbers(llama: dict[str, Any]) -> None:
    titles = set(Page(render(llama)).titles)
    for block, gap, value, low, high, _, p95, peak, *_ in llama["tables"]["angular_distance"]["rows"]:
        said = f"{text(value)} [{text(low)}, {text(high)}] · 95 % {text(p95)} · max {text(peak)}"
        if len({len(text(v)) for v in (value, low, high)}) == 1:
            assert f"blocks in the stretch {gap}, block {block}\n{said}" in titles
    spoken = {name: text(value) for _, name, value, *_ in llama["tables"]["residual_contribution"]["rows"][:3]}
    (first,) = [
        t for t in titles if t.startswith("block 0\n") and "attention" in t and "mlp" in t and spoken["mlp"] in t
    ]
    assert [line.split()[0] for line in first.splitlines()] == ["block", "block", "attention", "mlp"]


def test_darker_means_more(llama: dict[str, Any]) -> None:
    cells = re.findall(r'class="cell hit s(\d+)"><title>.*?\n([\d.]+)', card(render(llama), "angular_distance"))
    steps = [step for _, step in sorted((float(value), int(step)) for step, value in cells)]
    assert len(cells) == 78
    assert steps == sorted(steps)
    assert steps[0] < 5
    assert steps[-1] == 32


def test_undefined_is_not_zero(minimal: dict[str, Any]) -> None:
    html = render(minimal)
    here = card(html, "residual_contribution")
    assert here.count('<rect class="undefined"') == 1
    (dots,) = re.findall(r'<path class="dot k0" d="([^"]*)"', here)
    assert dots.count("M") == 2
    assert "block 1\nblock undefined" in here
    assert "1 number is undefined" in here
    assert "undefined" in card(html, "stream_growth")
    assert "Undefined numbers are drawn hatched or left out" in html
    assert "left out of residual_contribution (block 1 block)" in html
    assert 'class="floor undefined"' in html


def test_nan_is_read_like_null(minimal: dict[str, Any]) -> None:
    document = copy.deepcopy(minimal)
    document["tables"]["block_influence"]["rows"][1][1] = float("nan")
    document["tables"]["block_influence"]["rows"][1][6] = float("inf")
    assert render(document) == render(minimal)


@pytest.mark.parametrize(
    ("index", "places", "lines", "cells"),
    [
        ("block", [[b] for b in range(4)], 1, 0),
        ("step", [[100 * s] for s in range(50)], 1, 0),
        ("block part", [[b, p] for b in range(4) for p in ("gate", "mixer")], 2, 0),
        ("block quantity", [[b, q] for b in range(4) for q in ("left", "right", "up")], 3, 0),
        ("block matrix", [[b, f"experts.{m}"] for b in range(4) for m in range(12)], 0, 48),
        ("block head", [[b, h] for b in range(4) for h in range(8)], 0, 32),
        ("block head quantity", [[b, h, q] for b in range(4) for h in range(2) for q in ("x", "y")], 0, 16),
        ("a b c", [[a, b, c] for a in range(2) for b in range(2) for c in range(2)], 0, 8),
        ("a b c d", [[a, b, 0, d] for a in range(2) for b in range(2) for d in range(2)], 0, 0),
        ("word other", [[w, o] for w in "abcdefghijklm" for o in "xy"], 0, 26),
        ("word", [[w] for w in "abcdefghijklmnopqrstuvwxyz"], 0, 0),
        ("", [[]], 0, 0),
    ],
)
def test_a_new_measure_gets_its_picture(
    llama: dict[str, Any], new_table: Any, index: str, places: list[list[Any]], lines: int, cells: int
) -> None:
    html = render(llama | {"tables": {"a_new_measure": new_table(index, places)}})
    Page(html)
    here = card(html, "a_new_measure")
    drawn = here.split('<details class="definition"')[0]
    assert len(re.findall(r'<path class="line k\d" d="M\d+\.\d ', drawn)) == lines
    assert drawn.count('class="cell hit') == cells
    assert "A new measure" in drawn
    assert here.count("<tr>") == len(places) + 1
    if not lines and not cells:
        assert ('<dl class="numbers">' in drawn) == (index == "")
    assert ("open>" in here) == (index in ("a b c d", "word"))


@pytest.mark.parametrize(
    "spec", [{}, {"columns": ["block", "value"], "rows": []}, {"columns": ["a"], "rows": [[1], ["x"]]}]
)
def test_odd_tables_are_shown_as_tables(spec: dict[str, Any], llama: dict[str, Any]) -> None:
    html = render(llama | {"tables": {"odd": spec}})
    assert Page(html).elements
    assert "<code>odd</code>" in card(html, "odd")


def test_negative_numbers_get_the_diverging_ramp(llama: dict[str, Any], new_table: Any) -> None:
    table = new_table("block other", [[0, 0], [0, 1], [1, 0]])
    for row, value in zip(table["rows"], (-1.0, 0.0, 1.0), strict=True):
        row[2:] = [value, *[None] * 7]
    here = card(render(llama | {"tables": {"a_new_measure": table}}), "a_new_measure")
    assert re.findall(r'class="cell hit (\w+)"', here) == ["d0", "d16", "d32"]


def test_long_tables_are_cut_with_a_pointer(llama_of_depth: Any) -> None:
    here = card(render(llama_of_depth(60)), "angular_distance")
    assert here.count("<tr>") == 501
    assert "tables/angular_distance.csv" in here


def test_tower_from_quick_tables_alone(llama: dict[str, Any]) -> None:
    quick = {n: t for n, t in llama["tables"].items() if n in ("residual_contribution", "block_influence")}
    html = render(llama | {"tables": quick})
    assert "turn of the stream" in html
    assert len(re.findall(r'class="floor s\d+" style="width', html)) == 12
    bare = render(llama | {"tables": {}})
    assert bare.count('class="floor plain"') == 12
    assert "No measure of single blocks was run" in bare


def test_tower_marks_the_blocks_of_findings(llama: dict[str, Any]) -> None:
    html = render(llama)
    rows = re.findall(r'<th scope="row">(\d+)</th>\s*<td class="lanes">(.*?)</td>', html, re.S)
    assert [int(block) for block, _ in rows] == list(range(11, -1, -1))
    marked = {int(block): re.findall(r'href="#finding-(\d)"', marks) for block, marks in rows}
    for number, finding in enumerate(llama["findings"], start=1):
        assert [b for b in sorted(marked) if str(number) in marked[b]] == finding["blocks"]


def test_shared_blocks_are_named(llama: dict[str, Any]) -> None:
    html = render(llama | {"model": llama["model"] | {"order": [0] * 12, "unique_depth": 1}})
    assert "12 (1 distinct)" in html
    assert html.count("<small>= 0</small>") == 11


def test_notebook_fragment_keeps_to_itself(llama: dict[str, Any]) -> None:
    html = notebook_html(llama)
    page = Page(html)
    assert not {"html", "body", "head", "script", "link"} & {tag for tag, _ in page.elements}
    assert not any("id" in a for _, a in page.elements)
    style = re.sub(r"/\*.*?\*/", "", html.split("<style>")[1].split("</style>")[0], flags=re.S)
    for selector in re.findall(r"(?:^|[{}])\s*([^{}@]+?)\s*\{", style):
        assert all(part.strip().startswith(".lw-") for part in selector.replace(":is(th, td)", "").split(",")), selector
    assert html.count('class="floor s') == 12
    assert llama["findings"][0]["title"] in html


def test_document_is_left_alone_and_pages_repeat(llama: dict[str, Any]) -> None:
    before = json.dumps(llama)
    assert render(llama) == render(json.loads(before))
    assert json.dumps(llama) == before


def test_nearly_empty_documents() -> None:
    for document in ({}, {"model": None, "tables": None, "findings": None}, {"model": {"name": "x"}}):
        Page(render(document))
        Page(notebook_html(document))
