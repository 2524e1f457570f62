"""Tables carry what their numbers mean, and give them to derived measures as arrays."""

from __future__ import annotations

import numpy as np
import torch

from layerwright.core.reduce import Reducer
from layerwright.core.table import Field, derived_columns, field, replicate_fields, table


def test_index_columns_come_first_and_the_meaning_comes_along() -> None:
    meta = {"name": "angle", "unit": "1"}
    frame = table(("block", "gap"), [(0, 1), (0, 2)], {"value": np.array([0.25, 0.5])}, meta)
    assert list(frame.columns) == ["block", "gap", "value"]
    assert frame.attrs == {"name": "angle", "unit": "1", "index": ["block", "gap"]}
    assert frame[frame["gap"] == 2].sort_values("block").attrs["unit"] == "1"  # pandas keeps it on the way


KEYS = [(0, "block"), (0, "mlp"), (2, "block")]


def test_a_field_is_an_array_over_what_is_not_fixed() -> None:
    x = Field(("block", "part"), KEYS, np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    np.testing.assert_array_equal(x.array(part="block"), [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(x.array("max", part="mlp"), [5.0])
    assert x.array(part="attention").size == 0
    assert x.has(part="mlp")
    assert not x.has(part="attention")


def test_two_free_columns_give_a_matrix() -> None:
    x = Field(("source", "block", "quantity"), [(0, 1, "later"), (1, 2, "later")], np.array([1.0, 2.0]), np.zeros(2))
    np.testing.assert_array_equal(x.array(quantity="later"), [[np.nan, 1.0, np.nan], [np.nan, np.nan, 2.0]])


def test_replicates_are_of_the_same_sequences_in_every_table() -> None:
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    fields = []
    for scale in (1.0, 4.0):
        reducer = Reducer()
        reducer.add((0,), scale * values)
        reducer.close_batch(None)
        result = reducer.finish()
        fields.append(replicate_fields(field(("block",), result), result, seed=5))
    assert len(fields[0]) > 100
    for one, four in zip(*fields, strict=True):
        np.testing.assert_allclose(4 * one.array(), four.array())
        np.testing.assert_allclose(4 * one.array("max"), four.array("max"))


def test_derived_columns() -> None:
    columns = derived_columns(np.array([1.0]), [np.array([x]) for x in np.linspace(0, 1, 101)])
    np.testing.assert_allclose([columns["low"][0], columns["high"][0]], [0.025, 0.975])
    assert list(derived_columns(np.array([1.0]), [])) == ["value"]
