"""The page of a training run: complete, self-contained, escaped, and true to its numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from report.test_render import HOSTILE, Page

from layerwright.report.curve import MOST_PLACES, page

COLUMNS = ("step", "tokens", "loss", "distillation", "lr", "gradient_norm", "validation_loss", "seconds")


def document(steps: int = 30, teacher: bool = False, every: int = 10) -> dict[str, Any]:
    """A run whose loss falls from 4 to 2 and whose held-out loss is a tenth above it."""
    rows: list[list[Any]] = [[0, 0, None, None, None, None, 4.1, 0.5]]
    for k in range(1, steps + 1):
        loss = 2 + 2 * math.exp(-3 * k / steps)
        held = loss + 0.1 if k % every == 0 else None
        rows.append([k, 100 * k, loss, 0.5 if teacher else None, 1e-3, 1.5, held, 0.5 + k / 10])
    return {
        "model": {"name": "tiny-llama", "teacher": "LlamaForCausalLM" if teacher else None},
        "settings": {"steps": steps, "lr": 1e-3, "weight_decay": 0.1, "alpha": None},
        "data": {"source": "text.txt", "held_out_documents": 12},
        "held_out": {"before": 4.1, "after": 2.2, "change": -1.9, "low": -2.1, "high": -1.7},
        "notes": ["one note"],
        "curve": {"columns": list(COLUMNS), "rows": rows},
    }


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<body>") :]).split())


def test_the_page_says_what_came_of_it() -> None:
    html = page(document())
    Page(html)
    said = text_of(html)
    for words in (
        "tiny-llama", "Held-out loss before 4.10 nat/token", "Held-out loss after 2.20 nat/token",
        "Change −1.90 nat/token 95 % interval of the change −2.10 to −1.70", "Held-out documents 12", "Steps 30",
        "Tokens trained on 3,000", "one note", "weight decay 0.1", "One point a step.",
    ):  # fmt: skip
        assert words in said
    assert "Teacher" not in said
    assert "alpha" not in said
    assert "teacher" in text_of(page(document(teacher=True)))


def test_it_loads_nothing() -> None:
    html = page(document())
    for tag, attributes in Page(html).elements:
        assert tag not in ("script", "iframe", "object", "embed", "img")
        assert "src" not in attributes
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_every_number_of_a_short_run_can_be_read() -> None:
    titles = Page(page(document())).titles
    losses = [title for title in titles if "held-out text" in title or "training text" in title]
    assert len(losses) == 31
    assert "step 0\nheld-out text 4.10" in losses
    assert f"step 30\ntraining text {2 + 2 * math.exp(-3):.2f}\nheld-out text {2.1 + 2 * math.exp(-3):.2f}" in losses
    rows = re.findall(r"<tr><td>(\d+)</td><td>([\d,]+)</td><td>([\d.]+)</td></tr>", page(document()))
    assert [row[0] for row in rows] == ["0", "10", "20", "30"]


@pytest.mark.parametrize("steps", [1, 2, MOST_PLACES, MOST_PLACES + 1, 5000])
def test_a_run_of_any_length_is_drawn(steps: int) -> None:
    html = page(document(steps, every=max(1, steps // 10)))
    assert len(html) < 300_000
    windows = [title for title in Page(html).titles if "gradient" in title]
    assert len(windows) <= MOST_PLACES
    stride = -(-steps // MOST_PLACES)
    assert len(windows) == -(-steps // stride)
    assert (f"mean over {stride} steps" in html) == (stride > 1)
    assert windows[-1].startswith(f"step {steps:,}\n")


def test_a_point_is_the_mean_of_its_steps() -> None:
    made = document(2 * MOST_PLACES)
    for k, row in enumerate(made["curve"]["rows"][1:]):
        row[5] = 1.0 if k % 2 else 3.0
    titles = [title for title in Page(page(made)).titles if "gradient" in title]
    assert titles[0] == "step 2\ngradient 2"


def test_pictures_without_numbers_are_left_out() -> None:
    assert "Distance to the teacher" not in page(document())
    assert "Distance to the teacher" in page(document(teacher=True))
    made = document(3)
    made["held_out"] |= {"low": None, "high": None}
    assert "95 % interval of the change" not in page(made)


def test_hostile_names_stay_text() -> None:
    made = document()
    made["model"] = {"name": HOSTILE, "teacher": HOSTILE}
    made["data"]["source"] = HOSTILE
    made["settings"] = {HOSTILE: HOSTILE}
    made["notes"] = [HOSTILE]
    html = page(made)
    tags = {tag for tag, _ in Page(html).elements}
    assert not tags & {"script", "img"}
    assert "<script>alert" not in html


@pytest.mark.parametrize("made", [{}, {"curve": {"columns": [], "rows": []}}, {"model": {"name": "x"}}])
def test_a_document_without_a_run_is_a_page(made: dict[str, Any]) -> None:
    html = page(made)
    Page(html)
    assert "No step was made." in html
