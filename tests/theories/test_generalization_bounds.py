from __future__ import annotations

import math

import numpy as np
import pytest

import layerwright as lw
from layerwright.maths.information_bounds import wasserstein

NAME = "generalization_bounds"


def arrays(shift: float = 0.0, count: int = 60) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    train, test = generator.standard_normal((2, 3, count, 4))
    return {"train": train + shift, "test": test, "norms": np.array([2.0, 0.5])}


def test_the_kl_bound_falls_with_depth_and_stays_above_the_gap() -> None:
    found = lw.predict(NAME)
    bound = found.table["kl_bound"].to_numpy()
    assert (np.diff(bound) < 0).all()
    assert (np.diff(found.table["distance_bound"]) < 0).all()
    gap = found.picture.series["(gap itself)"][0][1]
    assert 0 < gap < bound[-1]
    assert f"the gap itself is {gap:.4g}" in found.notes[0]


def test_the_input_s_bound_is_that_of_information() -> None:
    table = lw.predict(NAME, samples=30, dimensions=12, widths=[12, 4, 1]).table
    information = -12 / 2 * math.log(1 - 1 / 30)
    assert table["kl"][0] == pytest.approx(information)
    assert table["kl_bound"][0] == pytest.approx(math.sqrt(information / 2))
    assert table["kl"][1] == pytest.approx(table["kl"][0])  # a layer as wide as the input keeps all


def test_bounds_that_say_nothing_are_called_vacuous() -> None:
    few = lw.predict(NAME, samples=4)
    assert any("kl_bound is vacuous at every layer" in note for note in few.notes)
    assert not any("kl_bound is vacuous" in note for note in lw.predict(NAME, samples=400).notes)


def test_narrow_layers_contract_and_wide_ones_do_not() -> None:
    narrow = lw.predict(NAME, dimensions=2, widths=[2, 1], dropout=0.5).table
    assert narrow["contraction"].tolist() == [1.0, 0.75, 0.5]
    assert narrow["contracted_bound"][2] == pytest.approx(math.sqrt(0.375) * narrow["kl_bound"][0])
    assert any("too wide" in note for note in lw.predict(NAME, dropconnect=0.1).notes)  # even of 8 weights to one unit
    assert not any("too wide" in note for note in lw.predict(NAME, dropout=0.1).notes)  # the last unit is dropped
    both = lw.predict(NAME, dimensions=2, widths=[1], dropout=0.5, injected=1.0).table["contraction"][1]
    assert both == pytest.approx(0.5 * 0.682689, abs=1e-5)


def test_samples_of_ones_own_are_held_against_chance() -> None:
    given = arrays(shift=3.0)
    found = lw.predict(NAME, given, lipschitz=2.0)
    table = found.table
    assert table["distance"].tolist() == pytest.approx(
        [wasserstein(a, b) for a, b in zip(given["train"], given["test"])]
    )
    assert table["suffix"].tolist() == [1.0, 0.5, 1.0]
    assert table["bound"].tolist() == pytest.approx((2 * table["suffix"] * table["distance"]).tolist())
    assert (table["distance"] > 2 * table["chance"]).all()
    assert found.notes[0].startswith("the funnel is layer 1")
    assert "vacuous at every layer" in found.notes[1]
    assert "without labels" in found.notes[-1]
    assert any("how few samples" in note for note in lw.predict(NAME, arrays()).notes)


def test_with_labels_distances_are_those_within_classes() -> None:
    given = arrays()
    one, other = np.repeat([0, 1], [40, 20]), np.repeat([1, 0], [30, 30])
    table = lw.predict(NAME, given | {"train_labels": one, "test_labels": other}).table
    far = arrays()
    for name, labels in (("train", one), ("test", other)):
        far[name] = far[name] + 100.0 * labels[:, None]  # classes that are far apart are as far within
    apart = lw.predict(NAME, far | {"train_labels": one, "test_labels": other})
    assert apart.table["distance"].tolist() == pytest.approx(table["distance"].tolist())
    assert apart.table["chance"].tolist() == pytest.approx(table["chance"].tolist())
    assert not any("without labels" in note for note in apart.notes)
    assert lw.predict(NAME, far).table["distance"][0] > 10  # one class has more of the training samples


def test_of_many_samples_some_are_drawn() -> None:
    given = arrays(count=700)
    one, same, other = (lw.predict(NAME, given, seed=s).table["distance"].tolist() for s in (0, 0, 1))
    assert one == same != other


def test_unequal_counts_are_cut_to_the_smaller() -> None:
    given = arrays()
    given["test"] = given["test"][:, :20]
    assert np.isfinite(lw.predict(NAME, given).table["bound"]).all()


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({}, {"samples": 1}, "got samples=1"), ({}, {"dimensions": 0}, "dimensions=0"), ({}, {"widths": [4, 8]}, "not"),
        ({}, {"widths": [4]}, "end with 1"), ({}, {"widths": []}, "widths="), ({}, {"signal": 0}, "signal=0"),
        ({}, {"noise": -1}, "noise=-1"), ({}, {"injected": -1}, "injected=-1"), ({}, {"dropout": 1.0}, "dropout=1.0"),
        ({}, {"dropconnect": -0.1}, "dropconnect=-0.1"), ({}, {"lipschitz": 0}, "lipschitz=0"),
        ({"train": arrays()["train"]}, {}, "all three"), (arrays() | {"norms": np.ones(3)}, {}, "one norm less"),
        (arrays() | {"test": np.ones((3, 9, 5))}, {}, "expected"), (arrays() | {"norms": -np.ones(2)}, {}, "below 0"),
        (arrays() | {"train": np.full((3, 60, 4), np.inf)}, {}, "infinite"), (arrays(count=1), {}, "fewer than two"),
        (arrays() | {"train_labels": np.ones(60)}, {}, "got labels"), ({"test_labels": np.ones(60)}, {}, "all three"),
        (arrays() | {"train_labels": np.ones(60), "test_labels": np.zeros(60)}, {}, "fewer than two"),
        (arrays() | {"train_labels": np.ones(60), "test_labels": np.zeros(6)}, {}, "got labels"),
        (arrays() | {"train": np.array("a")}, {}, "real numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(change: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict(NAME, change, **options)
