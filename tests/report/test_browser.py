"""The page in a real browser: it loads without complaint, its pictures are drawn, and it fits a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerwright.report import notebook_html, render

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on the path; looked for {', '.join(BROWSERS)}")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to run as root
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=[*QUIET, *(["--no-sandbox"] if root else [])])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens HTML as a file; afterwards holds the page to silence on the console and on the network."""
    complaints: list[str] = []
    contexts = []

    def open_(html: str, width: int = 1280, scheme: str = "light") -> Any:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("which", ["llama", "minimal"])
def test_fits_and_is_drawn(which: str, width: int, open_page: Open, request: pytest.FixtureRequest) -> None:
    page = open_page(render(request.getfixturevalue(which)), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator("svg.plot:visible")
    assert plots.count() > 1
    for plot in plots.all():
        box = plot.bounding_box()
        assert box["width"] > 150
        assert box["height"] > 60
        sizes = plot.evaluate(
            "svg => [...svg.querySelectorAll('.line, .bar, .cell, .dot')].map(m => {"
            "const b = m.getBoundingClientRect();"
            "return Math.max(b.width + b.height, parseFloat(getComputedStyle(m).strokeWidth) || 0); })"
        )
        assert sizes
        assert max(sizes) > 4
    floors = page.locator(".floor").all()
    assert len(floors) == {"llama": 12, "minimal": 3}[which]
    assert all(f.bounding_box()["width"] > 5 and f.bounding_box()["height"] > 5 for f in floors)


def test_every_detail_opened_still_fits_a_phone(llama: dict[str, Any], open_page: Open) -> None:
    page = open_page(render(llama), 400)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_deep_towers_fit(llama_of_depth: Callable[[int], Any], open_page: Open) -> None:
    page = open_page(render(llama_of_depth(48)), 400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_pointer_shows_the_numbers(llama: dict[str, Any], open_page: Open) -> None:
    page = open_page(render(llama))
    plot = page.locator("#table-residual_contribution svg.plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 3.5 / 12, box["y"] + 40)
    said = page.locator("#tip").inner_text().splitlines()
    assert said[0] == "block 3"
    assert [line.split()[0] for line in said[1:]] == ["block", "attention", "mlp"]
    tip = page.locator("#tip").bounding_box()
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= 1280
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_arrow_keys_walk_a_heat_map(llama: dict[str, Any], open_page: Open) -> None:
    page = open_page(render(llama))
    page.locator("#table-angular_distance svg.plot").focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        said.append(page.locator("#tip").inner_text().splitlines()[0])
    assert said == [f"blocks in the stretch {gap}, block {block}" for gap, block in ((1, 0), (1, 1), (2, 1), (2, 0))]
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_touch_shows_the_numbers(llama: dict[str, Any], browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(llama), encoding="utf-8")
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.locator("#table-block_influence .hit").nth(2).tap()
    assert page.locator("#tip").inner_text().startswith("block 2\n")
    context.close()


def test_switch_between_maximum_and_mean(llama: dict[str, Any], open_page: Open) -> None:
    page = open_page(render(llama))
    first = page.locator("#table-skip_effect .panel").first
    shown = first.locator("svg.plot:visible")
    before = shown.inner_html()
    first.get_by_text("mean over tokens").click()
    assert shown.count() == 1
    assert shown.inner_html() != before


def test_dark_mode_turns_the_page_dark(llama: dict[str, Any], open_page: Open) -> None:
    def paper(scheme: str) -> int:
        page = open_page(render(llama), scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(c) for c in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert paper("light") > 600
    assert paper("dark") < 150


def test_copy_button_selects_the_plan(llama: dict[str, Any], open_page: Open) -> None:
    page = open_page(render(llama))
    page.locator("[data-copy]").first.click()
    assert page.evaluate("getSelection().toString()").strip() == llama["findings"][0]["plan"].strip()


@pytest.mark.parametrize("width", [1000, 400])
def test_notebook_fragment(llama: dict[str, Any], open_page: Open, width: int) -> None:
    page = open_page(f"<!DOCTYPE html><body><p id='other'>text</p>{notebook_html(llama)}</body>", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(f.bounding_box()["width"] > 5 for f in page.locator(".floor").all())
    assert page.evaluate("getComputedStyle(document.getElementById('other')).color") == "rgb(0, 0, 0)"
