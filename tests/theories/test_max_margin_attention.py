from __future__ import annotations

import numpy as np
import pytest

import layerwright as lw
from layerwright.maths.max_margin import frobenius_margin, token_pairs

NAME = "max_margin_attention"


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"tokens": generator.standard_normal((3, 4, 6)), "best": np.array([0, 2, 3])}


def test_products_are_one_where_tokens_support_the_separator_and_more_elsewhere() -> None:
    found = lw.predict(NAME, sequences=3, length=6, dimensions=6)
    for prefix, rounding in (("", 1e-9), ("nuclear_", 1e-4)):
        product, multiplier = (found.table[prefix + name] for name in ("product", "multiplier"))
        assert (product > 1 - 1e-9).all()
        assert (product[multiplier > 0] < 1 + rounding).all()
        assert (multiplier > 0).any()
    assert len(found.table) == 3 * 5
    assert list(found.picture.series) == ["W is trained", "K and Q are trained"]


def test_multipliers_give_the_weights() -> None:
    given = arrays()
    table = lw.predict(NAME, given).table
    x, best = given["tokens"], given["best"]
    weights = sum(
        row.multiplier * np.outer(x[row.sequence, best[row.sequence]] - x[row.sequence, row.token], x[row.sequence, 0])
        for row in table.itertuples()
    )
    row = table.iloc[5]
    s, t = int(row["sequence"]), int(row["token"])
    assert (x[s, best[s]] - x[s, t]) @ weights @ x[s, 0] == pytest.approx(row["product"])


def test_weights_of_ones_own_are_held_beside() -> None:
    given = arrays()
    solved = frobenius_margin(token_pairs(given["tokens"], given["tokens"][:, 0], given["best"]))
    assert solved is not None
    note = lw.predict(NAME, given | {"weights": 7 * solved.weights}).notes[-1]
    assert "a cosine of 1.0000 with the direction of the Frobenius norm" in note
    assert "ahead of 9 of 9 others" in note
    assert "a cosine of -1.0000" in lw.predict(NAME, given | {"weights": -solved.weights}).notes[-1]


def test_queries_of_ones_own_are_used() -> None:
    given = arrays()
    same = lw.predict(NAME, given | {"queries": given["tokens"][:, 0]}).table
    assert same.equals(lw.predict(NAME, given).table)
    other = lw.predict(NAME, given | {"queries": given["tokens"][:, 1]}).table
    assert not np.allclose(other["multiplier"], same["multiplier"])


def test_what_cannot_be_told_apart_is_told() -> None:
    found = lw.predict(NAME, sequences=30, length=4, dimensions=2)
    assert found.table["product"].isna().all()
    assert found.table["multiplier"].sum() == pytest.approx(1.0)
    assert "contradict" in found.notes[0]
    assert found.picture is None


@pytest.mark.parametrize(
    "change, options, words",
    [
        ({}, {"sequences": 0}, "got sequences=0"), ({}, {"length": 1}, "from 2 on"), ({}, {"dimensions": 1.5}, "whole"),
        ({"best": np.array([0, 1, 2])}, {}, "without tokens"), ({"tokens": arrays()["tokens"]}, {}, "without best"),
        (arrays() | {"best": np.array([0, 1, 4])}, {}, "0 to 3"),
        (arrays() | {"best": np.array([0.5, 1, 1])}, {}, "whole"),
        (arrays() | {"tokens": np.ones((3, 4))}, {}, "sequences, tokens, d"),
        (arrays() | {"tokens": np.ones((3, 4, 2))}, {}, "equal to the best"),
        (arrays() | {"tokens": arrays()["tokens"] * np.nan}, {}, "NaN"),
        (arrays() | {"weights": np.ones((2, 2))}, {}, "got weights"),
        (arrays() | {"weights": np.zeros((6, 6))}, {}, "all 0"),
        (arrays() | {"queries": np.array(["a"])}, {}, "real numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(change: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict(NAME, change, **options)
