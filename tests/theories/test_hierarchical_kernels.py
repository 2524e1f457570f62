from __future__ import annotations

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.maths.hierarchical_kernel import tree_kernel

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8))
Y = X[:, 0] * X[:, 2]


def test_dimensions_decays_and_exponents_by_hand() -> None:
    found = lw.predict("hierarchical_kernels", filters=[3, 2], kernel="nngp").table
    assert found["inputs_seen"].tolist() == [3, 6]
    assert found["dimension"].tolist() == [2, 4]
    assert found["eigenvalue_decay"].tolist() == [5, 7]
    assert found["exponent_of_own_tree"].tolist() == [3 / 2, 3 / 4]
    assert found["exponent_of_endless_tree"].tolist() == [3 / 5, 3 / 7]
    assert found["exponent"].tolist() == pytest.approx([7 / 4 * 3 / 5, 3 / 4])
    assert found["exponent_with_noise"].tolist() == pytest.approx([1.05 / 2.05, 0.75 / 1.75])


def test_a_smaller_target_is_learned_faster_whatever_the_tree() -> None:
    for kernel in ("ntk", "nngp"):
        table = lw.predict("hierarchical_kernels", filters=[2, 2, 2, 2], kernel=kernel).table
        for name in ("exponent", "exponent_of_own_tree", "exponent_of_endless_tree", "exponent_with_noise"):
            assert table[name].is_monotonic_decreasing
        assert (table["exponent"] <= table["exponent_of_own_tree"]).all()
        assert (table["exponent"] >= table["exponent_of_endless_tree"]).all()


def test_data_are_fitted_by_trees_that_end_at_each_layer() -> None:
    found = lw.predict("hierarchical_kernels", {"inputs": X, "targets": Y}).table["left_out_error"]
    y = Y - Y.mean()
    for layer, error in enumerate(found, 1):
        k = tree_kernel(torch.from_numpy(X), [2] * layer).ntk.numpy()
        left = []
        for i in range(60):
            rest = np.arange(60) != i
            left.append(y[i] - k[i, rest] @ np.linalg.solve(k[np.ix_(rest, rest)], y[rest]))
        assert error == pytest.approx(np.square(left).mean() / np.square(y).mean(), rel=1e-6)
    assert found[1] < 0.8 * found[0]  # the target multiplies inputs of two patches


def test_duplicates_are_said_and_the_picture_is_drawn() -> None:
    twice = {"inputs": np.concatenate([X, X[:3]]), "targets": np.concatenate([Y, Y[:3]])}
    found = lw.predict("hierarchical_kernels", twice, filters=2)
    assert "the kernel of 1 layers is singular" in found.notes[0]
    assert lw.predict("hierarchical_kernels").svg().startswith("<svg")


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({}, {"filters": [1, 2]}, "the first from 2 on"), ({}, {"filters": [2, 0]}, "whole numbers"),
        ({}, {"filters": [2.5]}, "whole numbers"), ({}, {"kernel": "rbf"}, "ntk or nngp"),
        ({}, {"smoothness": 0.0}, "smoothness=0"), ({"inputs": X}, {}, "both, or neither"),
        ({"inputs": X[:, :6], "targets": Y}, {}, "a multiple of 8"), ({"inputs": X, "targets": Y[:5]}, {}, "as many"),
        ({"inputs": X * np.nan, "targets": Y}, {}, "finite"), ({"inputs": X, "targets": 0 * Y}, {}, "the same"),
        ({"inputs": X[:1], "targets": Y[:1]}, {}, "from 2 on"), ({"inputs": 0 * X, "targets": Y}, {}, "zeros"),
        # Their mean is off by rounding.
        ({"inputs": X[:30], "targets": np.full(30, 0.7)}, {}, "the same"),
        ({"inputs": X + 1j, "targets": Y}, {}, "real numbers"),
        ({"inputs": X[:, :0], "targets": Y}, {}, "expected rows"),
        ({"inputs": X * 1e300, "targets": Y}, {}, "scale the inputs down"), ({}, {"filters": 0.5}, "whole numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("hierarchical_kernels", arrays, **options)
