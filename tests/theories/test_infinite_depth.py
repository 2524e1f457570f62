from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import layerwright as lw


def points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.abs(rng.standard_normal((n, 3)))
    return x, (x[:, 0] + 0.3 * rng.standard_normal(n) > x[:, 1]).astype(int)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    (x, y), (new, truth) = points(120, 0), points(100, 1)
    return {"inputs": x, "labels": y, "queries": new, "query_labels": truth}


def test_the_class_of_an_activation_by_hand() -> None:
    found = lw.predict("infinite_depth", activation="relu", depth=10)
    assert found["dual_at_zero"] == pytest.approx(1 / math.pi)
    assert found["slope_at_zero"] == pytest.approx(0.5)
    assert found["slope_at_one"] == pytest.approx(1)
    assert math.isnan(found["exponent"])
    assert found.notes[0] == "class: majority, slowly"
    assert "many times the number of samples" in found.notes[1]


def test_a_constant_kernel_is_not_called_majority() -> None:
    assert lw.predict("infinite_depth", activation="sigmoid", depth=2).notes[1].startswith("not majority vote")


def test_a_function_of_ones_own() -> None:
    found = lw.predict("infinite_depth", activation=lambda x: torch.sin(1.6358710 * x), depth=5)
    assert found["consistent_dimension"] == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(
    "activation, simple", [("hermite:2", "nearest"), ("squared_relu", "majority"), ("optimal", "Hilbert")]
)
def test_depth_makes_of_data_what_the_theory_says(arrays: dict, activation: str, simple: str) -> None:
    found = lw.predict("infinite_depth", arrays, activation=activation, dimension=2)
    assert found[f"K_as_{simple}"] >= (1.0 if simple != "Hilbert" else 0.98)
    assert abs(found["accuracy_K"] - found[f"accuracy_{simple}"]) <= 1 - found[f"K_as_{simple}"]
    shallow = lw.predict("infinite_depth", arrays, activation=activation, dimension=2, depth=1)
    assert shallow[f"K_as_{simple}"] < found[f"K_as_{simple}"]
    assert shallow.picture is None


def test_accuracies_by_hand(arrays: dict) -> None:
    found = lw.predict("infinite_depth", arrays, activation="hermite:2", dimension=2, depth=3000)
    unit, new = (arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True) for name in ("inputs", "queries"))
    nearest = arrays["labels"][(new @ unit.T).argmax(1)]
    assert found["accuracy_nearest"] == found["accuracy_K"] == (nearest == arrays["query_labels"]).mean()
    votes = np.bincount(arrays["labels"]).argmax()
    assert found["accuracy_majority"] == (arrays["query_labels"] == votes).mean()
    assert set(found.picture.series) == {"K", "T", "(nearest)", "(majority)", "(Hilbert)"}
    assert found.picture.series["K"][-1][0] == 3000


def test_without_queries_every_third_input_is_asked_about(arrays: dict) -> None:
    held = lw.predict("infinite_depth", {k: arrays[k] for k in ("inputs", "labels")}, dimension=2, depth=3)
    place = np.arange(120) % 3 == 2
    by_hand = {"inputs": arrays["inputs"][~place], "labels": arrays["labels"][~place]}
    by_hand |= {"queries": arrays["inputs"][place], "query_labels": arrays["labels"][place]}
    given = lw.predict("infinite_depth", by_hand, dimension=2, depth=3)
    assert held.table.equals(given.table)
    assert "40 in all" in held.notes[-1]


def test_the_dimension_is_estimated_and_said(arrays: dict) -> None:
    found = lw.predict("infinite_depth", arrays, activation="optimal", depth=3)
    assert 1.5 < found["dimension"] < 2.6
    assert found["consistent_dimension"] == pytest.approx(found["dimension"])
    assert any("is estimated from the inputs" in note for note in found.notes)


def test_queries_without_labels_are_compared_only(arrays: dict) -> None:
    found = lw.predict("infinite_depth", {k: v for k, v in arrays.items() if k != "query_labels"}, dimension=2, depth=5)
    assert "accuracy_K" not in set(found.table["quantity"])
    assert 0 < found["K_as_nearest"] <= 1
    assert found.picture.up.startswith("agreement")


def test_norms_and_whole_numbers_make_no_difference(arrays: dict) -> None:
    whole = arrays | {"inputs": np.round(50 * arrays["inputs"]).astype(int)}
    scaled = whole | {"inputs": whole["inputs"] * np.arange(1.0, 121.0)[:, None]}
    a, b = (lw.predict("infinite_depth", given, dimension=2, depth=4) for given in (whole, scaled))
    assert a.table.equals(b.table)


def test_labels_are_names(arrays: dict) -> None:
    signs = arrays | {name: 10**12 * (2 * arrays[name] - 1) for name in ("labels", "query_labels")}
    a, b = (lw.predict("infinite_depth", given, dimension=2, depth=4) for given in (arrays, signs))
    assert a.table.equals(b.table)


def test_duplicates_count_once_and_are_said(arrays: dict) -> None:
    twice = arrays | {
        "inputs": np.concatenate([arrays["inputs"], arrays["inputs"][:3]]),
        "labels": np.concatenate([arrays["labels"], 1 - arrays["labels"][:1], arrays["labels"][1:3]]),
    }
    found = lw.predict("infinite_depth", twice, activation="optimal", dimension=2, depth=30)
    assert "3 of 123 inputs stand there more than once and count once, 1 of those left" in found.notes[1]
    assert math.isfinite(found["accuracy_T"])


def test_one_input_classifies_all() -> None:
    one = {
        "inputs": np.array([[3, 4]]),
        "labels": np.array([1]),
        "queries": np.eye(2),
        "query_labels": np.array([0, 1]),
    }
    for activation in ("relu", "optimal", "sigmoid"):
        found = lw.predict("infinite_depth", one, activation=activation, dimension=2, depth=20)
        assert found["accuracy_K"] == found["accuracy_T"] == found["accuracy_majority"] == 0.5


def test_an_activation_that_jumps_has_one_kernel(arrays: dict) -> None:
    found = lw.predict("infinite_depth", arrays, activation="sign", dimension=2, depth=3)
    assert "accuracy_T" not in set(found.table["quantity"])
    assert any("no tangent kernel" in note for note in found.notes)


def test_a_singular_kernel_gets_a_jitter_that_is_said(arrays: dict) -> None:
    found = lw.predict("infinite_depth", arrays, activation="hermite:2", dimension=2, depth=1)
    assert any("K is singular" in note for note in found.notes)


@pytest.mark.parametrize("activation", ["relu", "hermite:2", "optimal", "cos"])
def test_without_data_the_picture_is_the_kernel(activation: str) -> None:
    found = lw.predict("infinite_depth", activation=activation, dimension=2, depth=100)
    assert all(math.isfinite(y) for line in found.picture.series.values() for _, y in line)
    if activation == "optimal":
        deep, theory = (found.picture.series[name] for name in ("depth 100", "(α = 1)"))
        slopes = [(line[12][1] - line[0][1]) / (line[12][0] - line[0][0]) for line in (deep, theory)]
        assert slopes == pytest.approx([-1, -1], abs=0.01)


def test_inputs_that_point_apart_are_refused(arrays: dict) -> None:
    with pytest.raises(lw.UserError, match="shift each feature so that it is never below 0") as raised:
        lw.predict("infinite_depth", arrays | {"queries": arrays["queries"] - 1}, activation="tanh", dimension=2)
    assert "\n" not in str(raised.value)
    turned = {k: v @ np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0] if "s" in k and v.ndim == 2 else v
              for k, v in arrays.items()}  # fmt: skip
    assert turned["inputs"].min() < 0, "a rotation makes no difference"
    found = lw.predict("infinite_depth", turned, dimension=2, depth=2)
    assert found["accuracy_K"] == lw.predict("infinite_depth", arrays, dimension=2, depth=2)["accuracy_K"]


X, Y = np.ones((4, 2)), np.arange(4)


def test_without_a_dimension_the_hilbert_estimate_is_left_out_and_that_is_said() -> None:
    few = {"inputs": X, "labels": Y, "queries": X}
    found, given = lw.predict("infinite_depth", few), lw.predict("infinite_depth", few, dimension=1)
    assert any("no dimension can be estimated" in note for note in found.notes)
    assert set(given.table["quantity"]) - set(found.table["quantity"]) >= {"dimension", "K_as_Hilbert"}
    assert found["K_as_nearest"] == given["K_as_nearest"]


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({"inputs": X}, {}, "inputs without labels"), ({"labels": Y}, {}, "labels without their rows"),
        ({"inputs": X, "labels": Y, "query_labels": Y}, {}, "queries for query_labels"),
        ({"inputs": np.array([[1.0, math.nan]]), "labels": Y[:1]}, {}, "NaN or infinite"),
        ({"inputs": np.zeros((4, 2)), "labels": Y}, {}, "4 of 4 inputs that are zero vectors"),
        ({"inputs": np.ones(4), "labels": Y}, {}, r"got inputs \(4,\); expected rows"),
        ({"inputs": X, "labels": Y[:3]}, {}, r"got labels of type int64, shape \(3,\)"),
        ({"inputs": X, "labels": Y / 2}, {}, "got labels of type float64"),
        ({"inputs": X[:1], "labels": Y[:1]}, {}, "got 1 input and no queries"),
        ({"inputs": X, "labels": Y, "queries": np.ones((2, 3))}, {}, "2 columns and queries of 3"),
        ({"inputs": np.ones((9000, 2)), "labels": np.zeros(9000, int), "queries": X}, {"dimension": 1}, "at most"),
        ({}, {"activation": "optimal"}, "a dimension with it"), ({}, {"activation": "rellu"}, "nearest: 'relu'"),
        ({}, {"activation": "optimal", "dimension": 2, "variance": 2.0}, "expected variance=1"),
        ({}, {"activation": torch.zeros_like}, "is 0 at variance"), ({}, {"depth": 0}, "depth=0"),
        ({}, {"depth": 10**6}, "from 1 to 100000"), ({}, {"dimension": 0.1}, "dimension=0.1"),
        ({}, {"variance": -1}, "variance=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words) as raised:
        lw.predict("infinite_depth", arrays, **options)
    assert "\n" not in str(raised.value)
