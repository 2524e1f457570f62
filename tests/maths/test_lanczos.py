"""Eigenvalues from products against those of the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.maths import lanczos
from layerwright.maths.lanczos import (
    EXACT,
    Product,
    Quadrature,
    dense,
    from_matrix,
    largest,
    outliers,
    spectral_quadrature,
    traces,
    tridiagonal,
    with_error,
)  # fmt: skip

N = 400  # more than are done exactly


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    draw = torch.randn(len(values), len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(draw).Q
    return basis * values.double() @ basis.T


def like_a_hessian(size: int = N) -> Tensor:
    """Five outliers, a bulk around zero, a few negative values."""
    bulk = 0.05 * torch.randn(size - 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return symmetric(torch.cat([torch.tensor([9.0, 7.0, 6.0, 4.0, 3.5, -0.5, -0.4, -0.3]), bulk]))


def product(matrix: Tensor) -> Product:
    return lambda v: matrix @ v


@pytest.mark.parametrize("size", [7, N])
def test_the_largest_and_the_smallest(size: int) -> None:
    matrix = like_a_hessian(size + 8)
    values, vectors = torch.linalg.eigh(matrix)
    found = largest(product(matrix), len(matrix), 12)
    torch.testing.assert_close(found.values, values.flip(0)[:12], rtol=1e-6, atol=1e-6)
    assert (found.vectors[:, 0] @ vectors[:, -1]).abs() == pytest.approx(1.0, abs=1e-6)
    lowest = -largest(lambda v: -(matrix @ v), len(matrix)).values[0]
    assert float(lowest) == pytest.approx(float(values[0]), abs=1e-6)


def test_eigenvalues_at_zero_converge() -> None:
    matrix = symmetric(torch.cat([torch.tensor([5.0, 2.0]), torch.zeros(N - 2)]))
    calls = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return matrix @ v

    found = largest(counted, N, 6).values
    torch.testing.assert_close(found, torch.tensor([5.0, 2.0, 0.0, 0.0, 0.0, 0.0]).double(), rtol=1e-6, atol=1e-4)
    assert calls < N


def test_rounding_of_float32_products_is_no_hindrance() -> None:
    matrix = like_a_hessian()
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:12]
    found = largest(lambda v: matrix.float() @ v.float(), N, 12).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_matrix_of_zeros() -> None:
    found = largest(torch.zeros_like, N, 3)
    assert found.values.tolist() == [0.0, 0.0, 0.0]
    assert found.vectors.shape == (N, 3)
    assert traces(torch.zeros_like, N).tolist() == [0.0] * 8
    q = spectral_quadrature(torch.zeros_like, N)
    assert q.moment(1)[0] == 0.0
    assert q.range() == 0.0


def test_what_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanczos, "_RESTARTS", 1)
    with pytest.raises(ArithmeticError, match="of 12 eigenvalues converged; expected all"):
        largest(product(like_a_hessian()), N, 12)


def test_scaling_and_rotation() -> None:
    matrix = like_a_hessian()
    base = largest(product(matrix), N, 5).values
    torch.testing.assert_close(largest(product(1000.0 * matrix), N, 5).values, 1000.0 * base, rtol=1e-6, atol=0.0)
    turn = torch.linalg.qr(torch.randn(N, N, generator=torch.Generator().manual_seed(3)).double()).Q
    torch.testing.assert_close(largest(product(turn @ matrix @ turn.T), N, 5).values, base, rtol=1e-6, atol=0.0)


def test_small_matrices_are_made_once() -> None:
    matrix, calls = like_a_hessian(20), 0

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return matrix @ v

    again = from_matrix(counted, 20)
    torch.testing.assert_close(dense(again, 20), matrix)
    assert calls == 20
    assert from_matrix(counted, EXACT + 1) is counted


# Outliers


def test_outliers_stand_above_the_largest_ratio() -> None:
    assert outliers(torch.tensor([9.0, 7.0, 6.0, 0.5, 0.4])) == (3, 12.0)
    assert outliers(torch.tensor([9.0, 7.0, 1e-3, 1e-9])) == (2, pytest.approx(7.0 / 0.09))  # below 1 % is the bulk
    assert outliers(torch.tensor([4.0])) == (0, 1.0)
    assert outliers(torch.zeros(5)) == (0, 1.0)
    assert outliers(-torch.ones(5)) == (0, 1.0)


# Traces


def test_the_error_of_the_trace_covers_the_truth() -> None:
    matrix = like_a_hessian()
    found = [with_error(traces(product(matrix), N, probes=16, seed=seed)) for seed in range(100)]
    inside = [abs(value - matrix.trace()) <= 2 * error for value, error in found]
    assert 85 <= sum(inside) <= 100  # 95 of 100, less for the few probes
    mean = torch.stack([value for value, _ in found])
    assert abs(mean.mean() - matrix.trace()) < 3 * mean.std() / 10


def test_the_trace_of_a_diagonal_matrix_needs_one_probe() -> None:
    values = torch.arange(N).double()
    assert torch.equal(traces(lambda v: values * v, N, probes=3), values.sum().expand(3))


def test_small_matrices_have_exact_traces() -> None:
    matrix = like_a_hessian(30)
    value, error = with_error(traces(product(matrix), 30))
    assert value == pytest.approx(float(matrix.trace()))
    assert error == 0.0


# Density


def naive_lanczos(matrix: Tensor, start: Tensor, steps: int) -> Tensor:
    """As published, the three terms only: the tridiagonal matrix."""
    v, before, beta = start / start.norm(), torch.zeros_like(start), 0.0
    small = torch.zeros(steps, steps, dtype=torch.float64)
    for k in range(steps):
        w = matrix @ v - beta * before
        small[k, k] = w @ v
        w = w - small[k, k] * v
        if k + 1 < steps:
            beta = float(w.norm())
            small[k, k + 1] = small[k + 1, k] = beta
            before, v = v, w / beta
    return small


def test_few_steps_are_those_of_the_three_term_recurrence() -> None:
    matrix, start = like_a_hessian(), torch.randn(N, generator=torch.Generator().manual_seed(2)).double()
    values, vectors = torch.linalg.eigh(naive_lanczos(matrix, start, 8))
    found = tridiagonal(product(matrix), start, 8)
    torch.testing.assert_close(found.nodes[0], values, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.weights[0], vectors[0].square(), rtol=1e-8, atol=1e-10)


def test_many_steps_have_no_ghosts() -> None:
    matrix = like_a_hessian()
    found = tridiagonal(product(matrix), torch.ones(N), 120).nodes[0]
    assert int((found > 3.0).sum()) == 5  # each outlier once; without reorthogonalising they come again


def test_moments_of_a_probe_are_exact_up_to_twice_the_steps() -> None:
    matrix, z = like_a_hessian(), torch.ones(N).double()
    found = tridiagonal(product(matrix), z, 5)
    vector = z
    for power in range(10):
        expected = float(z @ vector / N)
        assert float(found.moment(power)[0]) == pytest.approx(expected, rel=1e-8), power
        vector = matrix @ vector


def test_moments_match_traces_within_their_error() -> None:
    matrix = like_a_hessian()
    q = spectral_quadrature(product(matrix), N, steps=20, probes=40)
    values = torch.linalg.eigvalsh(matrix)
    for power in (1, 2, 3):
        mean, error = q.moment(power)
        assert abs(mean - (values**power).mean()) < 3 * error, power
        assert error < 0.3 * (values.abs() ** power).mean(), power
    samples = traces(product(matrix), N, probes=40)  # the same probes
    assert float(q.moment(1)[0]) == pytest.approx(float(samples.mean() / N), rel=1e-10)


def test_the_density_is_that_of_the_eigenvalues() -> None:
    matrix = like_a_hessian()
    values, width = torch.linalg.eigvalsh(matrix), 0.3
    exact = Quadrature(values[None], torch.full((1, N), 1 / N).double())
    found = spectral_quadrature(product(matrix), N, steps=40, probes=12)
    x = exact.grid(301, width)
    truth, none = exact.density(x, width)
    density, error = found.density(x, width)
    assert (none == 0).all()
    assert float(torch.trapezoid(truth, x)) == pytest.approx(1.0, abs=1e-6)
    assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, abs=1e-6)
    assert float(torch.trapezoid(x * density, x)) == pytest.approx(float(found.moment(1)[0]), rel=1e-5)
    away = (density - truth).abs() / error.clamp_min(1e-6 * truth.max())
    assert (away < 2).double().mean() > 0.85
    assert (away < 5).all()


@pytest.mark.parametrize("size", [5, EXACT])
def test_small_matrices_are_exact(size: int) -> None:
    matrix = symmetric(torch.linspace(-1, 3, size))
    q = spectral_quadrature(product(matrix), size)
    torch.testing.assert_close(q.nodes[0], torch.linspace(-1, 3, size).double(), rtol=1e-6, atol=1e-6)
    assert q.moment(2)[1] == 0.0


def test_a_start_in_a_smaller_space_ends_early() -> None:
    values = torch.tensor([2.0, 3.0, 5.0, 7.0]).double()
    found = tridiagonal(lambda v: values * v, torch.tensor([1.0, 1.0, 0.0, 0.0]), 4)
    assert found.nodes.shape == (1, 4)
    torch.testing.assert_close(found.nodes[found.weights > 1e-12], torch.tensor([2.0, 3.0]).double())
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_seeds_draw_and_repeat() -> None:
    matrix = product(like_a_hessian())
    assert torch.equal(traces(matrix, N, seed=3), traces(matrix, N, seed=3))
    assert not torch.equal(traces(matrix, N, seed=3), traces(matrix, N, seed=4))
