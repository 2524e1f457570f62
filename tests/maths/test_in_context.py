"""Regression from a growing context: each algorithm against its loop over matrices, and against what is known of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from layerwright.maths.in_context import (
    contexts,
    error_similarity,
    gradient_descent,
    least_squares,
    newton,
    weights_in_context,
    whole_context,
)


def data(count: int = 3, points: int = 9, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xs, w = (torch.randn(count, n, m, generator=generator).double() for n, m in ((points, d), (d, 1)))
    return xs, (xs @ w).squeeze(-1)


def naive_newton(x: Tensor, y: Tensor, query: Tensor, iterations: int) -> list[float]:
    s = x.T @ x
    m = s.T / torch.linalg.matrix_norm(s @ s.T)
    found = [float(query @ m @ x.T @ y)]
    for _ in range(iterations):
        m = m @ (2 * torch.eye(len(s)).double() - s @ m)
        found.append(float(query @ m @ x.T @ y))
    return found


def naive_descent(x: Tensor, y: Tensor, query: Tensor, steps: int, step: float) -> float:
    w = torch.zeros(x.shape[1]).double()
    for _ in range(steps):
        w = w - step * x.T @ (x @ w - y)
    return float(query @ w)


@pytest.mark.parametrize("d", [1, 3, 5])
def test_predictions_are_those_of_loops_over_matrices(d: int) -> None:
    xs, ys = data(d=d)
    given = contexts(xs, ys)
    counts = [0, 1, 2, 7, 40]
    by_newton, by_descent, exact = newton(given, 8), gradient_descent(given, counts, 0.02), least_squares(given)
    assert by_newton.shape == (9, 3, 8)
    for n in range(3):
        for t in range(1, 9):
            x, y, query = xs[n, :t], ys[n, :t], xs[n, t]
            here = (slice(None), n, t - 1)
            assert by_newton[here].tolist() == pytest.approx(naive_newton(x, y, query, 8), rel=1e-9, abs=1e-12)
            steps = [naive_descent(x, y, query, k, 0.02) for k in counts]
            assert by_descent[here].tolist() == pytest.approx(steps, rel=1e-9, abs=1e-12)
            assert float(exact[n, t - 1]) == pytest.approx(float(query @ torch.linalg.pinv(x) @ y), rel=1e-7, abs=1e-9)


def test_newton_squares_its_error_every_iteration() -> None:
    s = torch.tensor([4.0, 2.0, 1.0]).double()  # three points along the axes, and a query along all of them
    xs = torch.cat([torch.diag(s.sqrt()), torch.ones(1, 3)])[None].double()
    start = 1 - s.square() / s.square().norm()
    for axis in range(3):  # with this target, only one axis counts: the prediction is 1 less its error
        ys = torch.zeros(1, 4).double()
        ys[0, axis] = s[axis].sqrt()
        errors = 1 - newton(contexts(xs, ys), 9)[:, 0, -1]
        torch.testing.assert_close(errors, start[axis] ** (2.0 ** torch.arange(10).double()), rtol=1e-9, atol=1e-15)


def test_right_digits_double() -> None:
    given = contexts(*data(points=12))
    errors = (newton(given, 12) - least_squares(given)).abs()[:, :, -1].amax(1)
    digits = [-math.log10(e) for e in errors.tolist() if 1e-12 < e < 1e-2]
    assert len(digits) >= 2
    assert all(after > 1.7 * before for before, after in itertools.pairwise(digits))


def test_gradient_steps_that_equal_newton_iterations_double() -> None:
    d, scale = 4, 1.5  # after d points along the axes S = scale² I
    xs = torch.cat([scale * torch.eye(d), torch.randn(1, d, generator=torch.Generator().manual_seed(0))])[None]
    given = contexts(xs, torch.arange(1.0, d + 2)[None])
    descent = gradient_descent(given, [2**k for k in range(6)], 1 / (scale**2 * math.sqrt(d)))
    torch.testing.assert_close(descent[:, 0, -1], newton(given, 5)[:, 0, -1], rtol=1e-12, atol=1e-12)


def test_a_step_for_each_context() -> None:
    given = contexts(*data())
    steps = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) / given.values.amax(-1)
    found = gradient_descent(given, [3], steps)
    xs, ys = data()
    for n, t in ((0, 0), (2, 7), (1, 4)):
        alone = naive_descent(xs[n, : t + 1], ys[n, : t + 1], xs[n, t + 1], 3, float(steps[n, t]))
        assert float(found[0, n, t]) == pytest.approx(alone)


def test_both_end_at_least_squares() -> None:
    given = contexts(*data(points=15))
    torch.testing.assert_close(newton(given, 60)[-1], least_squares(given), rtol=1e-7, atol=1e-9)
    late = gradient_descent(given, [10**7], 0.02)[0]
    torch.testing.assert_close(late[:, 5:], least_squares(given)[:, 5:], rtol=1e-6, atol=1e-8)


def test_without_noise_least_squares_is_right_from_d_points_on() -> None:
    xs, ys = data()
    torch.testing.assert_close(least_squares(contexts(xs, ys))[:, 2:], ys[:, 3:], rtol=1e-6, atol=1e-8)


def test_axes_order_and_scale_of_points_mean_nothing() -> None:
    xs, ys = data()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()).Q
    here = newton(contexts(xs, ys), 5)
    torch.testing.assert_close(newton(contexts(xs @ turn, ys), 5), here)
    torch.testing.assert_close(newton(contexts(7 * xs, ys), 5), here)
    torch.testing.assert_close(newton(contexts(xs, 7 * ys), 5), 7 * here)
    order = [2, 0, 5, 1, 4, 3, 7, 6, 8]  # the query stays last
    torch.testing.assert_close(newton(contexts(xs[:, order], ys[:, order]), 5)[..., -1], here[..., -1])
    torch.testing.assert_close(newton(contexts(xs[1:2], ys[1:2]), 5), here[:, 1:2])


def test_float32_points_are_taken_in_float64() -> None:
    xs, ys = (x.float() for x in data())
    torch.testing.assert_close(
        newton(contexts(xs, ys), 5), newton(contexts(xs.double(), ys.double()), 5), rtol=0, atol=0
    )


def test_points_of_zeros_predict_zero() -> None:
    given = contexts(torch.zeros(1, 4, 2), torch.ones(1, 4))
    for predicted in (newton(given, 5), gradient_descent(given, [5], 0.1), least_squares(given)):
        assert not predicted.any()


def test_similarity_is_the_mean_cosine_of_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, 7, generator=generator) for n in (2, 3))
    found = error_similarity(a, b)
    for i in range(2):
        for j in range(3):
            cosines = [float(a[i, n] @ b[j, n] / (a[i, n].norm() * b[j, n].norm())) for n in range(5)]
            assert float(found[i, j]) == pytest.approx(sum(cosines) / 5, abs=1e-6)


def test_bad_input_is_named() -> None:
    xs, ys = data()
    for wrong in ((xs[:, :1], ys[:, :1]), (xs, ys[:, 1:]), (xs[0], ys[0])):
        with pytest.raises(ValueError, match=r"at least two points"):
            contexts(*wrong)
    with pytest.raises(ValueError, match="NaN"):
        contexts(xs, ys.where(ys != ys[0, 0], torch.nan))
    with pytest.raises(ValueError, match="needs one below"):
        gradient_descent(contexts(xs, ys), [3], 1.0)


def test_a_whole_context_is_the_last_of_all_contexts() -> None:
    xs, ys = data(d=4)
    one, all_of_them = whole_context(xs, ys), contexts(xs, ys)
    torch.testing.assert_close(one.values, all_of_them.values[:, -1:])
    torch.testing.assert_close(newton(one, 3), newton(all_of_them, 3)[..., -1:])


def test_weights_in_context_are_those_of_loops_over_matrices() -> None:
    xs, ys = data(points=6)
    given = weights_in_context(xs, ys)
    for x, y, found in zip(xs, ys, gradient_descent(given, [7], 0.02)[0]):
        axes = torch.linalg.eigh(x.T @ x).eigenvectors
        expected = [naive_descent(x, y, axis, 7, 0.02) for axis in axes.T]
        assert found.abs().tolist() == pytest.approx([abs(e) for e in expected], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        least_squares(given).norm(dim=-1), torch.linalg.lstsq(xs, ys[..., None])[0].norm(dim=1)[:, 0]
    )
