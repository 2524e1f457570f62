from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import layerwright as lw

NAME = "collapse_perturbation"


def arrays(seed: int = 0, classes: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, 40)
    return {"features": generator.standard_normal((classes, 6))[labels] + generator.standard_normal((40, 6)),
            "labels": labels}  # fmt: skip


def test_features_that_are_held_less_move_further_and_collapse_more() -> None:
    found = lw.predict(NAME, time=30)
    table = found.table
    assert table["vicinity"].tolist() == [math.inf, 10.0, 1.0, 0.1, 0.01, 0.0]
    for column, sign in (("moved", 1), ("variance_ratio", -1), ("nc1", -1)):
        assert (sign * table[column].diff().dropna() > 0).all()
    assert table["moved"][0] == 0
    free = list(found.picture.series.values())[-1]
    assert all(after[1] < before[1] for before, after in itertools.pairwise(free))
    assert free[-1][1] == pytest.approx(table["variance_ratio"].iloc[-1])


def test_features_as_given_have_the_numbers_of_their_moments() -> None:
    given = arrays()
    row = lw.predict(NAME, given, vicinity=[1.0]).table.iloc[0]
    means = np.stack([given["features"][given["labels"] == k].mean(0) for k in range(3)])
    within = given["features"] - means[given["labels"]]
    between = means - means.mean(0)
    covariance, spread = within.T @ within / 40, between.T @ between / 3
    assert row["variance_ratio"] == pytest.approx(np.trace(covariance) / np.trace(spread))
    assert row["nc1"] == pytest.approx(np.trace(covariance @ np.linalg.pinv(spread)) / 3)


def test_names_of_classes_mean_nothing() -> None:
    given = arrays()
    same = lw.predict(NAME, given | {"labels": np.array([7, 2, 900])[given["labels"]]}, vicinity=0.5).table
    expected = lw.predict(NAME, given, vicinity=0.5).table
    np.testing.assert_allclose(same.to_numpy(), expected.to_numpy(), rtol=1e-4)


def test_notes_say_what_has_not_settled() -> None:
    assert "vicinity 0" in lw.predict(NAME, vicinity=[1.0, 0.0], time=10).notes[-1]
    assert len(lw.predict(NAME, vicinity=[1.0], time=10).notes) == 1


def test_notes_say_from_where_on_the_first_order_is_none() -> None:
    near, far = (lw.predict(NAME, vicinity=[10.0, beta], time=1.0).notes for beta in (8.0, 0.1))
    assert not any("to_first_order" in note for note in near)
    assert "to_first_order says nothing where the vicinity is below 0.67, the size of that rate" in far


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({}, {"vicinity": []}, "got vicinity="), ({}, {"vicinity": [-1]}, "from 0 on"),
        ({}, {"weight_decay": 0}, "above 0"),
        ({}, {"feature_decay": -1}, "feature_decay=-1"), ({}, {"time": 0}, "time=0"), ({}, {"spread": 0}, "spread=0"),
        ({}, {"classes": 1}, "got classes=1"), ({}, {"samples": 1.5}, "got samples=1.5"),
        ({"labels": arrays()["labels"]}, {}, "one of the arrays"), (arrays() | {"labels": np.zeros(40)}, {}, "1 class"),
        (arrays() | {"labels": np.zeros(3)}, {}, "whole number"),
        (arrays() | {"labels": np.full(40, 0.5)}, {}, "whole"),
        (arrays() | {"features": np.full((40, 6), np.nan)}, {}, "not finite"),
        (arrays() | {"features": np.ones((40, 6))}, {}, "all the same"),
        (arrays() | {"features": np.array(["a"])}, {}, "real numbers"),
        (arrays() | {"features": np.eye(3)[arrays()["labels"]]}, {}, "do not vary"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(change: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict(NAME, change, **options)
