from __future__ import annotations

import math

import pytest
import torch

import layerwright as lw

SMALL = {"width": 60, "depth": 6, "nets": 400}


def test_relu_without_a_stream() -> None:
    found = lw.predict("finite_width", **SMALL)
    assert found["growth"] == pytest.approx(5)
    assert found["growth_without_memory"] == pytest.approx(5)
    assert found["weight_variance"] == 2
    assert found["depth_of_large_fluctuations"] == pytest.approx(12)
    assert found["best_depth_over_width"] == pytest.approx(4 / 250)
    assert found["spread"] == pytest.approx(math.expm1(0.5))
    assert abs(found["drawn_growth"] - 5) < 3 * found["drawn_growth_error"]
    assert found.notes == ["class: scale-invariant"]


def test_a_stream_remembers_signs_and_the_networks_drawn_agree() -> None:
    found = lw.predict("finite_width", skip=0.8, width=100, depth=14, nets=2000)
    assert found["growth"] > 1.5 * found["growth_without_memory"]
    assert abs(found["drawn_growth"] - found["growth_in_these_layers"]) < 3 * found["drawn_growth_error"]
    assert found["drawn_growth"] > found["growth_without_memory"] + 3 * found["drawn_growth_error"]
    assert set(found.picture.series) == {"networks drawn", "(formula)", "(without memory)"}


def test_a_block_with_a_linear_map_of_its_own_has_no_memory() -> None:
    found = lw.predict("finite_width", skip=0.8, inner=1.0, **SMALL)
    assert found["growth_by_memory"] == 0
    assert found["growth"] == pytest.approx(2 * (1 - 0.8**4) + 0.36**2 * 5)
    assert set(found.picture.series) == {"networks drawn", "(formula)"}


def test_a_half_stable_activation_starts_at_its_critical_variance() -> None:
    found = lw.predict("finite_width", activation=lambda x: 2 * torch.nn.functional.gelu(x), **SMALL)
    gelu = lw.predict("criticality", activation="gelu")
    assert found["growth"] == pytest.approx(gelu["fluctuation_growth"])
    assert found["bias_variance"] == pytest.approx(gelu["bias_variance"])


def test_a_deep_and_narrow_network_is_told_so() -> None:
    found = lw.predict("finite_width", width=8, depth=20, nets=40)
    assert "νL/n = 12" in found.notes[1]
    assert all(x <= 4 for line in found.picture.series.values() for _, x in line)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"activation": "sigmoid"}, "sigmoid has no critical point"), ({"activation": "rellu"}, "nearest: 'relu'"),
        ({"width": 1}, "width=1"), ({"depth": 1.5}, "depth=1.5"), ({"outputs": 0}, "outputs=0"),
        ({"nets": 10}, "nets=10; expected a whole number from 40"), ({"skip": 1.0}, "from 0 to below 1"),
        ({"skip": math.nan}, "skip=nan"), ({"inner": 0}, "inner=0"),
        ({"inner": 0.001, "width": 4}, "at least one unit"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words) as raised:
        lw.predict("finite_width", **options)
    assert "\n" not in str(raised.value)
