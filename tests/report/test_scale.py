"""Scales and numbers in words."""

from __future__ import annotations

import math

import pytest

from layerwright.report.scale import Scale, fit, short, text, triple

KINDS = [
    Scale(0.0, 5.0), Scale(-2.0, 3.0), Scale(0.01, 40.0, "log"), Scale(1.1, 1.9, "log"), Scale(2.1e-4, 4.9e-4, "log"),
    Scale(-3.0, 900.0, "asinh", 0.5),
]  # fmt: skip


@pytest.mark.parametrize("scale", KINDS)
def test_monotone_and_ticks_inside(scale: Scale) -> None:
    points = [scale.low + (scale.high - scale.low) * k / 50 for k in range(51)]
    places = [scale.at(p) for p in points]
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == 1
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(scale.low <= t <= scale.high * (1 + 1e-9) for t in ticks)
    assert ticks == sorted(ticks)
    assert len({short(t) for t in ticks}) == len(ticks), "each is told from its neighbours"


def test_known_places() -> None:
    assert Scale(0, 8).at(2) == 0.25
    assert Scale(1, 100, "log").at(10) == pytest.approx(0.5)
    assert Scale(-4, 4, "asinh", 1.0).at(0) == pytest.approx(0.5)
    assert Scale(0, 3, "asinh", 2.0).at(1) == pytest.approx(math.asinh(0.5) / math.asinh(1.5))
    assert Scale(0, 1).at(7) == 1
    assert Scale(1, 10, "log").at(-1) == 0


@pytest.mark.parametrize(
    ("values", "low", "high", "kind"),
    [
        ([0.2, 0.4], 0.0, 0.4, "linear"),
        ([-0.2, 0.4], -0.2, 0.4, "linear"),
        ([0.1, 0.1, 0.1, 5.0], 0.0, 5.0, "asinh"),
        ([0.0, 0.0], 0.0, 1.0, "linear"),
        ([], 0.0, 1.0, "linear"),
        ([None, 3.0], 0.0, 3.0, "linear"),
        ([1e-12, 1e-12], 0.0, 1e-12, "linear"),
    ],
)
def test_fit(values: list[float | None], low: float, high: float, kind: str) -> None:
    scale = fit(values)
    assert (scale.low, scale.high, scale.kind) == (low, high, kind)
    assert scale.ticks()


def test_fit_on_request() -> None:
    assert fit([1, 10], "log").kind == "log"
    assert fit([0, 10], "log").kind == "linear", "zero has no logarithm"
    symmetric = fit([-1.0, 3.0], symmetric=True)
    assert (symmetric.low, symmetric.high) == (-3, 3)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (3, "3"), (3.0, "3.00"), (1234.5, "1,234"), (2.5e8, "2.50e8"), (-0.5, "−0.500"), (None, "undefined")],
)
def test_text(value: float | None, said: str) -> None:
    assert text(value) == said


def test_triple_shares_its_decimals() -> None:
    assert triple(0.5, 0.45, 0.551) == ("0.500", "0.450", "0.551")
    assert triple(0.5, None, None) == ("0.500", "", "")
    assert triple(2e-5, 1e-5, 3e-5) == ("2.00e−5", "1.00e−5", "3.00e−5")
    assert triple(None, None, None) == ("undefined", "", "")


def test_short() -> None:
    assert [short(v) for v in (0, 0.5, 1000, 1e7, -2e-5)] == ["0", "0.5", "1,000", "1e7", "−2e−5"]
