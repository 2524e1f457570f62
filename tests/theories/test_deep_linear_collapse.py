from __future__ import annotations

import numpy as np
import pytest

import layerwright as lw


def test_balanced_classes_are_of_one_length_and_nearly_fitted_without_decay() -> None:
    table = lw.predict("deep_linear_collapse", counts=[30, 30, 30], weight_decay=1e-6, feature_decay=1e-6).table
    assert table["feature_square"].nunique() == 1
    np.testing.assert_allclose(table["output"], 1.0, atol=1e-3)
    more = lw.predict("deep_linear_collapse", counts=[30, 30, 30], weight_decay=1e-2, feature_decay=1e-3).table
    assert (more["output"] < table["output"]).all()


def test_small_classes_vanish_where_the_note_says() -> None:
    options = {"weight_decay": 0.3, "feature_decay": 0.01}
    found = lw.predict("deep_linear_collapse", counts=[40, 6, 5], **options)
    least = 51**2 * 0.3 * 0.01
    assert found.notes == [f"a class survives from {least:.4g} samples on, of 51 in all"]
    assert found.table["survives"].tolist() == [n > least for n in (40, 6, 5)]
    assert (found.table.loc[~found.table["survives"], ["row_square", "feature_square", "output"]] == 0).all(axis=None)


def test_the_picture_is_the_output_by_samples_from_the_smallest_class_on() -> None:
    found = lw.predict("deep_linear_collapse", counts=[40, 3, 10])
    assert found.picture is not None
    (points,) = found.picture.series.values()
    assert points == list(zip([3.0, 10.0, 40.0], found.table["output"].iloc[[1, 2, 0]]))
    assert "<svg" in lw.predict("deep_linear_collapse", counts=[7]).svg()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"counts": [3, 0]}, "whole numbers from 1 on"), ({"counts": []}, "whole numbers"),
        ({"matrices": 0}, "matrices=0"), ({"counts": [1.5]}, "whole numbers"), ({"counts": 0.5}, "whole numbers"),
        ({"weight_decay": 0}, "above 0: without decay"), ({"weight_decay": float("inf")}, "both finite"),
        ({"feature_decay": -1.0}, "above 0: without decay"), ({"weight_decay": "x"}, "a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("deep_linear_collapse", **options)
