from __future__ import annotations

import numpy as np
import pytest
from naive import tables
from zoo import llama, token_ids

from layerwright.core.table import Field
from layerwright.measures.gradient_roughness import gradient_roughness

INDEX = ("block", "matrix", "quantity")


def field(curve: list[float]) -> Field:
    keys = [(block, "q", "nuclear_norm") for block in range(len(curve))]
    return Field(INDEX, keys, np.array(curve), np.array(curve))


def test_hand_values() -> None:
    found = gradient_roughness(field([0.0, 1.0, 3.0, 3.0, 2.0, 8.0]))
    assert found == {
        ("q", "all", "nuclear_norm"): pytest.approx(2.0),
        ("q", "early", "nuclear_norm"): 1.0,
        ("q", "middle", "nuclear_norm"): 0.0,
        ("q", "late", "nuclear_norm"): 6.0,
    }


def test_it_is_as_rough_from_top_to_bottom() -> None:
    up, down = gradient_roughness(field([0.0, 1.0, 5.0])), gradient_roughness(field([5.0, 1.0, 0.0]))
    assert up == down


def test_a_short_tower_has_no_thirds() -> None:
    found = gradient_roughness(field([1.0, 3.0]))
    assert list(found) == [("q", "all", "nuclear_norm")]


def test_it_reads_what_was_measured() -> None:
    ids = token_ids(3, 9)
    found = tables(llama(), {"input_ids": ids}, "gradient_spectrum", "gradient_roughness")
    spectrum, rough = found["gradient_spectrum"], found["gradient_roughness"]
    for row in rough.itertuples():
        chosen = spectrum[(spectrum.matrix == row.matrix) & (spectrum.quantity == row.quantity)]
        curve = chosen.sort_values("block")["value"].to_numpy()
        if row.stretch == "all":
            assert row.value == pytest.approx(np.abs(np.diff(curve)).mean())
            assert row.low <= row.high
