"""Two surveys on one page: both curves, their difference, and where its numbers are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from zoo import gpt2, llama, token_ids

import layerwright as lw
from layerwright.report import render
from layerwright.report.beside import beside
from layerwright.report.pictures import endings

ONLY = ["residual_contribution", "stream_scale", "gradient_spectrum", "gradient_roughness", "angular_distance"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    data = {"input_ids": token_ids(6, 9)}
    return lw.survey(llama(), data, only=ONLY, against_data={"input_ids": token_ids(6, 9).flip(1)}).to_dict()


def test_every_measure_that_both_have_gets_a_card(document: dict[str, Any]) -> None:
    page = render(document)
    assert '<section id="beside">' in page
    assert '<a href="against/report.html">' in page
    for name in document["against"]["tables"]:
        assert f'id="table-comparison-{name}"' in page
        assert f"comparison-{name}" in page
    assert len(set(re.findall(r'id="([^"]+)"', page))) == len(re.findall(r' id="([^"]+)"', page))


def test_curves_of_both_where_they_can_be_told_apart(document: dict[str, Any]) -> None:
    _, cards = beside(document)
    by_name = {card.sheet.name.removeprefix("comparison-"): card for card in cards}
    assert [p.heading for p in by_name["stream_scale"].panels] == ["both", "difference"]
    assert len(by_name["stream_scale"].panels[0].legend) == 2
    assert all("both" not in p.heading for p in by_name["gradient_spectrum"].panels)  # 14 lines
    assert all("difference" in p.heading for p in by_name["gradient_roughness"].panels)


def test_the_value_drawn_is_the_difference(document: dict[str, Any]) -> None:
    _, cards = beside(document)
    sheet = next(card.sheet for card in cards if card.sheet.name == "comparison-stream_scale")
    table = document["against"]["tables"]["stream_scale"]
    place = table["columns"].index("difference")
    assert [row["value"] for row in sheet.rows] == [row[place] for row in table["rows"]]
    assert {"low", "high"} <= set(sheet.columns)
    assert sheet.file == "comparison/stream_scale.csv"


def test_a_survey_alone_has_no_such_section() -> None:
    page = render(lw.survey(gpt2(), {"input_ids": token_ids(2, 9)}, tier="quick").to_dict())
    assert "Side by side" not in page


def test_names_that_end_alike_keep_what_tells_them_apart() -> None:
    assert endings(["a.q", "b.k"]) == {"a.q": "q", "b.k": "k"}
    assert endings(["attn.out", "mlp.out", "block"]) == {"attn.out": "attn.out", "mlp.out": "mlp.out"}
