from __future__ import annotations

import math

import pytest

import layerwright as lw

SMALL = {"modulus": 7, "units": 6}


def test_features_emerge_with_samples_and_thresholds_are_said() -> None:
    found = lw.predict("feature_emergence", **SMALL)
    table = found.table
    assert table["samples"].iloc[-1] == 49
    assert table["found"].iloc[-1] == table["kept"].iloc[-1] == 1
    assert table["energy"].iloc[-1] == pytest.approx(1)
    assert table["over_m_ln_m"].iloc[-1] == pytest.approx(49 / (7 * math.log(7)))
    assert table["purity"].iloc[0] < 0.7 < table["purity"].iloc[-1]
    assert [note.split(" end as")[0] for note in found.notes[:2]] == [
        "half of the units from random weights", "half of the units from waves",
    ]  # fmt: skip
    assert "2.7482 M ln M to be critical, here 37 samples" in found.notes[2]
    assert found.picture is not None
    assert len(found.picture.series["from waves"]) == len(table)


def test_counts_of_ones_own_are_looked_at_without_a_search() -> None:
    found = lw.predict("feature_emergence", samples=[10, 49], **SMALL)
    assert found.table["samples"].tolist() == [10, 49]
    assert found.table["found"].tolist() == [0, 1]
    assert len(found.notes) == 1


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, same, other = (lw.predict("feature_emergence", samples=[30], seed=s, **SMALL).table for s in (1, 1, 2))
    assert first.equals(same)
    assert not first.equals(other)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"modulus": 2}, "modulus=2"), ({"modulus": 7.5}, "modulus=7.5"), ({"units": 0}, "units=0"),
        ({"seed": -1}, "seed=-1"), ({"samples": [0]}, "from 1 to 289"), ({"samples": [300]}, "from 1 to 289"),
        ({"samples": [9.5]}, "from 1 to 289"), ({"modulus": "many"}, "modulus"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("feature_emergence", **options)
