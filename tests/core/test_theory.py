"""The registry of theories: what is refused, what is written, and what a docstring has to say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import layerwright as lw
import layerwright.theories  # registers them
from layerwright.core.errors import UserError
from layerwright.core.theory import THEORIES, Picture, Prediction, quantities, theory


@pytest.mark.parametrize("name", THEORIES)
def test_every_theory_says_what_it_assumes_and_predicts_by_default(name: str) -> None:
    known = THEORIES[name]
    assert known.title
    assert known.assumes.endswith(".")
    assert "Assumes" not in known.definition
    assert known.formula
    if all(known.needs.values()):
        made = lw.predict(name)
        assert len(made.table)
        assert made.theory["paper"]["arxiv"] == known.paper.arxiv
        assert set(made.units) <= set(made.table.columns)
        assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["theory"]["name"] == name


@pytest.mark.parametrize(
    "name, arrays, options, words",
    [
        ("deep_liner", {}, {}, "unknown theory 'deep_liner'; did you mean 'deep_linear'"),
        ("deep_linear", {}, {"dept": 3}, "has no option 'dept'; did you mean 'depth'"),
        ("deep_linear", {"x": np.ones(3)}, {}, "does not read the array 'x'; it takes none"),
        ("random_features", {"x": np.ones(3)}, {}, "expected eigenvalues, coefficients"),
        ("random_features", {"eigenvalues": np.ones(3) * 1j}, {}, "got eigenvalues of type complex128"),
        ("random_features", {"eigenvalues": np.array(["a"])}, {}, "got eigenvalues of type <U1; expected real numbers"),
        ("random_features", {"eigenvalues": [[1.0], [1.0, 2.0]]}, {}, "got eigenvalues that is no array"),
        ("newton_iterates", {"xs": np.ones((3, 2)).astype("datetime64[D]")}, {}, "got xs of type datetime64"),
    ],
)
def test_what_is_unknown_is_refused(name: str, arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        lw.predict(name, arrays, **options)


def test_a_theory_has_to_say_what_it_assumes() -> None:
    def bold() -> Prediction:
        """A title.

        x = 1
        """
        return Prediction(pd.DataFrame())

    with pytest.raises(ValueError, match="does not say what it assumes"):
        theory(paper="1312.6120")(bold)


def test_files_are_written_by_how_their_name_ends(tmp_path: Path) -> None:
    made = lw.predict("deep_linear", modes=[2.0])
    document = json.loads(made.save(tmp_path / "a.json").read_text())
    assert document["columns"] == list(made.table.columns)
    assert document["theory"]["options"] == {"depth": 3, "modes": [2.0], "start": 0.01}
    pd.testing.assert_frame_equal(pd.read_csv(made.save(tmp_path / "a.csv")), made.table)
    assert made.save(tmp_path / "a.svg").read_text().startswith("<svg")
    with pytest.raises(UserError, match=r"expected a name that ends with one of .json, .csv, .svg"):
        made.save(tmp_path / "a.pdf")
    with pytest.raises(UserError, match="draws nothing"):
        Prediction(made.table).save(tmp_path / "b.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.json", "a.svg"]


def test_quantities_are_read_by_name() -> None:
    made = Prediction(quantities([("a", 1.5, "1", "one"), ("b", float("nan"), "nat", "none")]))
    assert made["a"] == 1.5
    assert made.to_dict()["rows"][1][1] is None
    with pytest.raises(KeyError):
        made["c"]
    with pytest.raises(KeyError):
        Prediction(pd.DataFrame({"x": [1]}))["x"]


@pytest.mark.parametrize(
    "options, words",
    [({"depth": "3"}, "got depth=3; expected a number"), ({"modes": "x"}, r"expected numbers, as in \[3, 2, 1\]")],
)
def test_options_are_of_the_kind_of_their_default(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        lw.predict("deep_linear", **options)


@pytest.mark.parametrize("given", [["rbf"], {"rbf": 1}, 3, None])
def test_a_name_is_a_name(given: object) -> None:
    with pytest.raises(UserError, match=r"got kernel=.*; expected a name"):
        lw.predict("deep_kernel_machine", kernel=given)


@pytest.mark.parametrize("seed", [-1, 0.5, float("nan"), float("inf"), 2**70])
@pytest.mark.parametrize("name", ["gradient_step_attention", "max_margin_attention", "generalization_bounds"])
def test_a_seed_is_a_whole_number(name: str, seed: float) -> None:
    with pytest.raises(UserError, match=r"got seed=.*; expected a whole number from 0 on"):
        lw.predict(name, seed=seed)


@pytest.mark.parametrize("given", [3, np.int64(3), np.array([3]), [3]])
def test_one_number_is_a_list_of_one_and_arrays_are_lists(given: object) -> None:
    wanted = lw.predict("deep_linear", modes=[3], depth=2)
    found = lw.predict("deep_linear", modes=given, depth=np.int64(2))
    pd.testing.assert_frame_equal(found.table, wanted.table)
    assert found.theory["options"]["modes"] == [3]


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("max_margin_attention", {"length": 10**12}, "more memory than there is"),  # numpy says so
        ("gradient_step_attention", {"points": 10**12}, "more memory than there is"),  # and torch
        ("residual_paths", {"gain": 1e308}, "has no numbers for these arrays and options"),
        ("criticality", {"weight_variance": 1e308}, "expected less extreme ones"),
        ("collapse_perturbation", {"spread": 1e308}, "linalg.* expected less extreme ones"),
    ],
)
def test_what_no_computer_holds_is_one_line(name: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        lw.predict(name, **options)
    assert "\n" not in str(error.value)


def test_points_without_a_number_are_left_out_of_the_picture() -> None:
    def drawn(series: dict) -> str:
        return Prediction(pd.DataFrame(), picture=Picture(series, "x (1)", "y (1)")).svg()

    nan, points = float("nan"), [(0.0, 1.0), (1.0, 2.0)]
    assert drawn({"a": [*points, (2.0, nan)], "b": [(0.0, nan)]}) == drawn({"a": points})
    with pytest.raises(UserError, match="without a finite number to draw"):
        drawn({"a": [(0.0, nan)]})
