"""Lines as one SVG: axes in powers, intervals, and a legend that has room."""

from __future__ import annotations

import re

from layerwright.report.lines import LEFT, LETTER, RIGHT, WIDE, lines


def drawn(series: dict[str, list[tuple[float, ...]]], **options: bool) -> str:
    return lines(series, across="steps", up="loss (nat)", label="how it fell", **options)


def places(svg: str) -> list[tuple[float, float]]:
    """Where the points of the first line are."""
    path = re.search(r'd="(M[^"]*L[^"]*)"', svg)
    assert path
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]([\d.]+) ([\d.]+)", path[1])]


def test_powers_of_ten_are_evenly_spaced_on_a_logarithmic_axis() -> None:
    x = [a for a, _ in places(drawn({"loss": [(1, 1), (10, 2), (100, 3)]}, log_across=True))]
    assert abs((x[1] - x[0]) - (x[2] - x[1])) < 0.2
    y = [b for _, b in places(drawn({"loss": [(1, 1), (2, 10), (3, 100)]}, log=True))]
    assert abs((y[1] - y[0]) - (y[2] - y[1])) < 0.2


def test_an_axis_of_whole_numbers_has_no_other_ticks() -> None:
    layers, halves = (lines({"a": [(x, 1.0), (x + step, 2.0)]}, across="l", up="y", label="")
                      for x, step in ((1, 1), (1, 1.5)))  # fmt: skip
    assert ">1.25<" in halves
    assert layers.count('text-anchor="middle"') == 3  # 1, 2 and the name


def test_marks_at_the_end_of_the_axis_are_inside_of_the_picture() -> None:
    svg = drawn({"error": [(0.5, 1.0), (50_000, 0.1)]}, log_across=True)
    found = re.search(r'<text x="([\d.]+)"[^>]*>50,000<', svg)
    assert found
    assert float(found[1]) + LETTER * len("50,000") / 2 <= WIDE


def test_an_interval_is_a_bar_around_its_point_and_widens_the_axis() -> None:
    svg = drawn({"loss": [(0, 2, 1, 4), (1, 2, 1.5, 2.5)]})
    bars = [(float(low), float(high)) for low, high in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", svg)]
    heights = [b for _, b in places(svg)]
    assert len(bars) == 2
    assert all(high < at < low for at, (low, high) in zip(heights, bars, strict=True))
    assert not re.search(r"M[\d.]+ [\d.]+V", drawn({"loss": [(0, 2), (1, 2)]}))


def test_names_that_do_not_fit_beside_each_other_take_another_row() -> None:
    names = ["orthogonal start, ten layers deep", "gaussian start, ten layers deep", "theory"]
    svg = drawn({name: [(0, 1), (1, 2)] for name in names})
    at = {name: re.search(rf'x="(\d+)" y="([\d.]+)">{name}<', svg) for name in names}
    rows = [float(found[2]) for found in at.values() if found]
    assert rows[0] < rows[1] == rows[2]
    assert all(found and LEFT <= int(found[1]) < RIGHT for found in at.values())
