"""Separators of best tokens: each is certified by the multipliers that bound it, and held against another solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.svm import SVC

from layerwright.maths.max_margin import Pairs, contradiction, frobenius_margin, nuclear_margin, token_pairs


def drawn(n: int, length: int, d: int, seed: int = 0, scale: float = 1.0) -> Pairs:
    generator = np.random.default_rng(seed)
    tokens = scale * generator.standard_normal((n, length, d))
    return token_pairs(tokens, generator.standard_normal((n, d)), generator.integers(0, length, n))


SIZES = [(1, 2, 1), (1, 4, 3), (3, 5, 6), (6, 6, 6), (10, 4, 12), (5, 2, 30)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_each_separator_is_certified(size: tuple[int, int, int], scale: float) -> None:
    pairs = drawn(*size, scale=scale)
    frobenius, nuclear = frobenius_margin(pairs), nuclear_margin(pairs)
    assert frobenius is not None
    assert nuclear is not None
    for found in (frobenius, nuclear):
        assert pairs.products(found.weights).min() > 1 - 1e-9
        assert (found.multipliers >= 0).all()
    # A W that keeps the constraints has no norm below Σ α (or its size here), whatever solver it comes from.
    assert np.linalg.norm(frobenius.weights) == pytest.approx(frobenius.norm)
    np.testing.assert_allclose(pairs.combined(frobenius.multipliers), frobenius.weights, rtol=1e-6, atol=1e-9 / scale)
    assert frobenius.multipliers.sum() == pytest.approx(frobenius.norm**2, rel=1e-8)
    assert np.linalg.norm(pairs.combined(nuclear.multipliers), 2) < 1 + 1e-9
    assert np.linalg.norm(nuclear.weights, "nuc") == pytest.approx(nuclear.norm)
    assert nuclear.multipliers.sum() == pytest.approx(nuclear.norm, rel=2e-6)
    assert frobenius.norm <= nuclear.norm * (1 + 1e-9) <= np.linalg.norm(frobenius.weights, "nuc") * (1 + 1e-5)


def test_tokens_with_a_multiplier_bind() -> None:
    pairs = drawn(6, 6, 8, seed=1)
    for found, rounding in ((frobenius_margin(pairs), 1e-9), (nuclear_margin(pairs), 1e-4)):
        assert found is not None
        products = pairs.products(found.weights)
        support = found.multipliers > 1e-4 * found.multipliers.max()
        assert 0 < support.sum() < len(support)
        assert (products[support] < 1 + rounding).all()


def test_a_support_vector_machine_finds_the_same_direction() -> None:
    pairs = drawn(5, 4, 6, seed=2)
    rows = (pairs.differences[:, :, None] * pairs.queries[:, None, :]).reshape(len(pairs.tokens), -1)
    machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(np.vstack([rows, -rows]), [1] * len(rows) + [-1] * len(rows))
    found = frobenius_margin(pairs)
    assert found is not None
    np.testing.assert_allclose(machine.coef_.reshape(6, 6), found.weights, rtol=1e-4, atol=1e-5)


def test_a_general_solver_finds_no_smaller_nuclear_norm() -> None:
    pairs = drawn(3, 3, 3, seed=3)
    found = nuclear_margin(pairs)
    assert found is not None

    def half(factors: np.ndarray) -> float:  # ½ (‖K‖² + ‖Q‖²) is the nuclear norm of K Qᵀ at its least
        return 0.5 * float((factors**2).sum())

    def room(factors: np.ndarray) -> np.ndarray:
        k, q = factors.reshape(2, 3, 3)
        return pairs.products(k @ q.T) - 1

    tries = [
        minimize(half, np.random.default_rng(s).standard_normal(18), constraints={"type": "ineq", "fun": room})
        for s in range(4)
    ]
    best = min(t.fun for t in tries if room(t.x).min() > -1e-7)
    assert best == pytest.approx(found.norm, rel=1e-4)


def test_two_tokens_in_closed_form() -> None:
    pairs = token_pairs(np.array([[[3.0, 0.0], [0.0, 4.0]]]), np.array([[0.0, 2.0]]), np.array([0]))
    outer = np.outer([3.0, -4.0], [0.0, 2.0])
    for found in (frobenius_margin(pairs), nuclear_margin(pairs)):
        assert found is not None
        np.testing.assert_allclose(found.weights, outer / (outer**2).sum(), atol=1e-6)
        assert found.norm == pytest.approx(0.1, rel=1e-6)


def test_turned_tokens_turn_the_weights() -> None:
    pairs = drawn(4, 5, 5, seed=4)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    turned = pairs._replace(differences=pairs.differences @ turn.T, queries=pairs.queries @ turn.T)
    for solve, rounding in ((frobenius_margin, 1e-8), (nuclear_margin, 1e-3)):
        here, there = solve(pairs), solve(turned)
        assert here is not None
        assert there is not None
        np.testing.assert_allclose(there.weights, turn @ here.weights @ turn.T, atol=rounding * here.norm)


def test_tokens_that_contradict_are_named() -> None:
    generator = np.random.default_rng(0)
    tokens, query = generator.standard_normal((2, 3, 4)), generator.standard_normal(4)
    tokens[1, :2] = tokens[0, :2]  # the same two tokens, the same query, and another of them the best
    pairs = token_pairs(tokens, np.stack([query, query]), np.array([0, 1]))
    shares = contradiction(pairs)
    assert shares is not None
    np.testing.assert_allclose(pairs.combined(shares), 0.0, atol=1e-7)
    assert shares.tolist() == pytest.approx([0.5, 0, 0.5, 0], abs=1e-7)
    assert frobenius_margin(pairs) is None
    assert nuclear_margin(pairs) is None


def test_too_many_demands_for_too_few_weights_contradict() -> None:
    pairs = drawn(40, 3, 2)
    shares = contradiction(pairs)
    assert shares is not None
    np.testing.assert_allclose(pairs.combined(shares), 0.0, atol=1e-6)
    assert contradiction(drawn(3, 3, 8)) is None


def test_a_narrow_margin_is_a_margin() -> None:
    tokens = np.array([[[1.0, 0.0], [1.0 - 1e-4, 0.0], [0.0, 0.0]]])
    found = frobenius_margin(token_pairs(tokens, np.array([[1.0, 0.0]]), np.array([0])))
    assert found is not None
    assert found.norm == pytest.approx(1e4)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokens": np.ones((2, 1, 3))}, "two tokens or more"), ({"queries": np.ones((2, 4))}, "expected"),
        ({"queries": np.zeros((2, 3))}, "query of zeros in sequence 0"), ({"best": np.array([0, 3])}, "0 to 2"),
        ({"best": np.array([0])}, "expected the index"), ({"tokens": np.full((2, 3, 3), np.nan)}, "NaN"),
        ({"tokens": np.ones((2, 3, 3))}, "token 1 of sequence 0 equal to the best"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, np.ndarray], words: str) -> None:
    given = {"tokens": np.arange(18.0).reshape(2, 3, 3) ** 2, "queries": np.ones((2, 3)), "best": np.array([0, 1])}
    with pytest.raises(ValueError, match=words):
        token_pairs(**(given | change))
