"""Averages of activations over two correlated Gaussians, against quadrature in the plane and 50-digit arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from layerwright.maths.activation import NAMES, Activation, activation
from layerwright.maths.arc_cosine import angle
from layerwright.maths.hermite import hermite_polynomials, hermite_series, mean_square

CLOSED = [
    "linear", "relu", "leaky_relu:0.1", "leaky_relu:-0.5", "abs", "squared_relu", "rectified:3", "rectified:4",
    "monomial:2", "monomial:3", "hermite:2", "hermite:3", "hermite:4", "erf", "gelu", "sin", "sin:1.7", "cos:0.8",
    "rbf:0.6",
]  # fmt: skip
JUMPS = ("step", "sign")
SERIES = ("tanh", "sigmoid", "silu", "softplus", "mish", "gelu_tanh")
float64 = partial(torch.tensor, dtype=torch.float64)
# Unequal variances, both signs, near one, near minus one, and none.
Q1 = float64([1.3, 2.0, 0.25, 1.0, 1.0, 0.6])
Q2 = float64([0.7, 0.5, 2.0, 1.0, 1.0, 1.5])
RHO = float64([0.45, -0.6, 0.9, 0.99, -0.97, 0.0])
C = RHO * (Q1 * Q2).sqrt()


def plane(f: object, q1: float, c: float, q2: float) -> float:
    """E f(u) f(v) in polar coordinates, the angle split where u or v changes its sign."""
    theta = math.acos(c / math.sqrt(q1 * q2))
    cuts = sorted(a % (2 * math.pi) for a in (math.pi / 2, -math.pi / 2, theta + math.pi / 2, theta - math.pi / 2))
    edges = float64([*cuts, cuts[0] + 2 * math.pi])
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))
    half = edges.diff() / 2
    alpha = (edges[:-1, None] + half[:, None] * (1 + x)).reshape(-1, 1)
    weight = (half[:, None] * w).reshape(-1, 1)
    ends = float64([0.0, 1.0, 2.5, 4.5, 7.0, 13.0])
    r = (ends[:-1, None] + ends.diff()[:, None] / 2 * (1 + x)).flatten()
    radial = (ends.diff()[:, None] / 2 * w).flatten() * r * torch.exp(-r.square() / 2) / (2 * math.pi)
    u, v = math.sqrt(q1) * r * alpha.cos(), math.sqrt(q2) * r * (alpha - theta).cos()
    return float((weight * radial * f(u) * f(v)).sum())


def planes(f: object) -> Tensor:
    return float64([plane(f, *case) for case in zip(Q1.tolist(), C.tolist(), Q2.tolist())])


def as_series(name: str) -> Activation:
    phi = activation(name)
    return Activation(name, phi.function, phi.derivative)


def assert_close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*CLOSED, *JUMPS, *SERIES])
def test_duals_are_integrals_over_the_plane(name: str) -> None:
    phi = activation(name)
    exact = phi.closed is not None
    assert_close(phi.dual(Q1, C, Q2), planes(phi.function), 1e-12 if exact else 1e-7)
    if phi.derivative is not None:
        assert_close(phi.dual_derivative(Q1, C, Q2), planes(phi.derivative), 1e-12 if exact else 3e-6)


@pytest.mark.parametrize("name", [*CLOSED, *SERIES])
def test_the_derivatives_dual_is_the_slope_of_the_dual(name: str) -> None:
    phi, step = activation(name), 1e-4 * (Q1 * Q2).sqrt()
    slope = (phi.dual(Q1, C + step, Q2) - phi.dual(Q1, C - step, Q2)) / (2 * step)
    assert_close(phi.dual_derivative(Q1, C, Q2), slope, 1e-5)


@pytest.mark.parametrize("name", [*CLOSED, *JUMPS, *SERIES])
def test_duals_are_symmetric_and_their_diagonal_is_exact(name: str) -> None:
    phi, q = activation(name), torch.logspace(-3, 1.5, 40, dtype=torch.float64)
    assert torch.equal(phi.dual(Q1, C, Q2), phi.dual(Q2, C, Q1))
    assert torch.equal(phi.dual(q, q, q), phi.diagonal(q))
    assert_close(phi.diagonal(q), mean_square(phi.function, q))
    if phi.derivative is not None:
        assert torch.equal(phi.dual_derivative(q, q, q), phi.diagonal_derivative(q))
        assert_close(phi.diagonal_derivative(q), mean_square(phi.derivative, q))
        step = 1e-4 * q
        slope = (phi.diagonal(q + step) - phi.diagonal(q - step)) / (2 * step)
        assert_close(phi.diagonal_slope(q), slope, 1e-6)


def test_the_diagonal_of_kinked_activations_has_no_error_at_all() -> None:
    q = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double() * 10
    assert torch.equal(activation("relu").dual_derivative(q, q, q), torch.full_like(q, 0.5))
    assert torch.equal(activation("step").dual(q, q, q), torch.full_like(q, 0.5))
    assert_close(activation("relu").dual(q, q, q), q / 2, 4e-16)


def test_near_one_no_digits_are_lost() -> None:
    with localcontext(prec=60):
        d = Decimal(2) ** -40  # 1 − ρ = 9.1e-13, exact in float64
        half = (d / 2).sqrt()
        theta = 2 * (half + half**3 / 6 + 3 * half**5 / 40 + 15 * half**7 / 336)  # 2 asin √(d/2), by its series
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        truths = {
            "step": (pi - theta) / (2 * pi),
            "relu": ((1 - (1 - d) ** 2).sqrt() + (1 - d) * (pi - theta)) / (2 * pi),
        }
    q, rho = float64(1.0), 1 - float64(2.0**-40)
    assert float(angle(q, rho, q)) == pytest.approx(float(theta), rel=4e-16)
    assert float(angle(4 * q, 4 * rho, 4 * q)) == pytest.approx(float(theta), rel=4e-16)
    for name, truth in truths.items():
        assert float(activation(name).dual(q, rho, q)) == pytest.approx(float(truth), abs=2e-16)
    # Unequal variances: within what a few roundings of c do to the angle.
    found = float(angle(1.3 * q, rho * float64(1.3 * 0.7).sqrt(), 0.7 * q))
    low, high = (math.sqrt(2 * (float(d) + change)) for change in (-(2.0**-50), 2.0**-50))
    assert low < found < high


@pytest.mark.parametrize("name", ["relu", "leaky_relu:0.1"])
def test_monte_carlo_agrees(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    u, e = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    q1, q2, rho = 1.7, 0.6, -0.4
    phi = activation(name)
    draws = phi.function(math.sqrt(q1) * u) * phi.function(math.sqrt(q2) * (rho * u + math.sqrt(1 - rho**2) * e))
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - phi.dual(q1, rho * math.sqrt(q1 * q2), q2)) < 3 * error


@pytest.mark.parametrize("name", ["erf", "gelu", "sin", "cos", "rbf:0.5", "hermite:4", "monomial:3", "linear"])
def test_the_series_agrees_with_the_closed_form(name: str) -> None:
    phi, series = activation(name), as_series(name)
    assert_close(series.dual(Q1, C, Q2), phi.dual(Q1, C, Q2), 1e-8)
    assert_close(series.dual_derivative(Q1, C, Q2), phi.dual_derivative(Q1, C, Q2), 1e-6)
    easy = [x[[0, 1, 5]] for x in (Q1, C, Q2)]
    assert_close(series.dual(*easy), phi.dual(*easy), 1e-12)


def test_the_series_of_tanh_reaches_the_recorded_accuracy() -> None:
    tanh = activation("tanh")
    truth = plane(torch.tanh, 1.0, 0.6, 1.0)
    for terms, error in ((8, 4e-6), (16, 2e-9), (32, 1e-14)):
        a = tanh.coefficients(1.0, terms)
        assert abs(float(hermite_series(a, a, float64(0.6))) - truth) < error
    for q1, q2, rho in ((1.3, 0.7, 0.99), (1.0, 1.0, 0.999), (4.0, 1.0, 0.9)):
        c = rho * math.sqrt(q1 * q2)
        assert abs(float(tanh.dual(q1, c, q2)) - plane(torch.tanh, q1, c, q2)) < 1e-7
        slope = plane(lambda x: 1 - x.tanh() ** 2, q1, c, q2)
        assert abs(float(tanh.dual_derivative(q1, c, q2)) - slope) < 1e-6


@pytest.mark.parametrize("q", [4.0, 100.0])
def test_large_variances_take_more_terms(q: float) -> None:
    tanh = activation("tanh")
    assert tanh.tail(q) > 1e-5
    assert float(tanh.dual(q, 0.9 * q, q)) == pytest.approx(plane(torch.tanh, q, 0.9 * q, q), abs=1e-6)


@pytest.mark.parametrize("name", ["tanh", "silu", "relu", "abs"])
def test_what_the_series_leaves_out_is_bounded_by_its_tail(name: str) -> None:
    series = as_series(name)
    tails = (series.tail(Q1) * series.tail(Q2)).sqrt() * RHO.abs() ** 32
    assert bool(((series.dual(Q1, C, Q2) - planes(series.function)).abs() <= tails + 1e-12).all())


def test_hermite_polynomials_are_orthonormal() -> None:
    for n in (0, 1, 5, 12):
        assert_close(activation(f"hermite:{n}").coefficients(1.0, 32), torch.eye(32, dtype=torch.float64)[n], 1e-11)
    assert len(list(hermite_polynomials(torch.zeros(3), 4))) == 4


CLASSES = {
    "scale-invariant": ["linear", "relu", "leaky_relu:0.1", "abs"],
    "K* = 0": ["tanh", "sin", "sin:0.5", "erf", nn.Softsign(), nn.ELU(), nn.SELU(), "hermite:3"],
    "half-stable": ["gelu", "silu", "mish", "gelu_tanh", lambda x: 2 * x * torch.sigmoid(1.702 * x)],
    "none": ["sigmoid", "softplus", "step", "sign", "squared_relu", "monomial:2", "monomial:3", "cos", "rbf",
             torch.exp, torch.sinh, nn.Softshrink()],
}  # fmt: skip


@pytest.mark.parametrize("name, member", [(name, member) for name, members in CLASSES.items() for member in members])
def test_each_activation_has_its_universality_class(name: str, member: object) -> None:
    found = activation(member).universality  # type: ignore[arg-type]
    assert found.name == name
    assert (found.critical_variance > 0) == (name == "half-stable")


def test_the_critical_variances_of_gelu_and_silu_are_known() -> None:
    gelu, silu = (activation(name).universality.critical_variance for name in ("gelu", "silu"))
    assert gelu == pytest.approx((3 + math.sqrt(17)) / 2, rel=1e-11)
    assert silu == pytest.approx(14.32009, abs=1e-4)


def test_values_on_the_sphere() -> None:
    expected = {
        "relu": (1 / math.pi, 0.5, 1.0),
        "hermite:3": (0.0, 0.0, 3.0),
        "step": (0.5, 1 / math.pi, math.inf),
        "sin": (0.0, 1 / math.sinh(1), 1 / math.tanh(1)),
    }
    for name, values in expected.items():
        assert_close(torch.stack(activation(name).sphere()), float64(values), 1e-13)


@pytest.mark.parametrize(
    "given, name",
    [
        (nn.ReLU(), "relu"), (nn.LeakyReLU(0.1), "leaky_relu:0.1"), (nn.GELU(), "gelu"), (torch.sin, "sin"),
        (nn.Identity(), "linear"), (lambda x: x.clamp(min=0) ** 2, "squared_relu"), (lambda x: x > 0, "step"),
        (nn.PReLU(init=0.1), "leaky_relu:0.1"), (lambda x: x**3, "monomial:3"), (torch.sign, "sign"),
    ],
)  # fmt: skip
def test_callables_take_the_closed_form_they_agree_with(given: nn.Module, name: str) -> None:
    found, known = activation(given), activation(name)
    assert found.closed is not None
    assert found.degree == known.degree
    assert (found.derivative is None) == (known.derivative is None)
    assert_close(found.dual(Q1, C, Q2), known.dual(Q1, C, Q2), 1e-7)


@pytest.mark.parametrize(
    "given", [nn.GELU(approximate="tanh"), nn.Tanh(), functional.silu, nn.ReLU6(), nn.Dropout(0.5)]
)
def test_other_callables_keep_their_own_numbers(given: nn.Module) -> None:
    phi = activation(given, kinks=(6.0,))
    assert_close(phi.diagonal(Q1), mean_square(nn.Identity() if isinstance(given, nn.Dropout) else given, Q1, (6.0,)))


def test_declared_kinks_make_the_diagonal_exact() -> None:
    phi = activation(nn.Hardtanh(), kinks=(-1.0, 1.0))
    inside = math.erf(1 / math.sqrt(2))
    expected = inside - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) + 1 - inside
    assert_close(phi.diagonal(1.0), expected, 1e-14)
    assert_close(phi.diagonal_derivative(1.0), inside, 1e-14)


@pytest.mark.parametrize(
    "given, kinks",
    [
        (nn.Hardtanh(), (-1.0, 1.0)), (nn.Hardswish(), (-3.0, 3.0)), (nn.ReLU6(), (6.0,)), (nn.ELU(), ()),
        (lambda x: (x - 1 / 3).relu(), (0.333333333333,)), (nn.Mish(), ()), (lambda x: (50 * x).tanh(), ()),
    ],
)  # fmt: skip
def test_kinks_that_are_not_declared_are_found(given: nn.Module, kinks: tuple[float, ...]) -> None:
    phi = activation(given)
    assert phi.kinks == kinks
    draws = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, v = draws[:, 0], 1.5 * (0.6 * draws[:, 0] + 0.8 * draws[:, 1])
    for f, expected in ((phi.function, phi.dual), (phi.derivative, phi.dual_derivative)):
        seen = f(u) * f(v)  # type: ignore[misc]
        assert abs(seen.mean() - expected(1.0, 0.9, 2.25)) < 3 * seen.std() / len(seen) ** 0.5


def test_jumps_of_a_staircase_are_found() -> None:
    assert activation(torch.floor).diagonal(1.0) == pytest.approx(
        sum(k * k * (math.erf((k + 1) / 2**0.5) - math.erf(k / 2**0.5)) / 2 for k in range(-9, 9)), rel=1e-12
    )


def test_the_users_module_is_left_as_it_was_and_inference_mode_is_no_obstacle() -> None:
    module = nn.Sequential(nn.PReLU(), nn.Dropout(), nn.Tanh()).train()
    with torch.inference_mode():
        slope = activation(module).dual_derivative(1.0, 0.5, 1.0)
    assert slope > 0
    assert module.training
    assert all(p.dtype == torch.float32 and p.requires_grad and p.grad is None for p in module.parameters())


def test_shapes_and_types_follow_the_arguments() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    q, k = x.square().sum(-1), x @ x.T
    for name in ("relu", "tanh"):
        phi = activation(name)
        found = phi.dual(q[:, None], k, q)
        assert found.shape == (5, 5)
        assert found.dtype == torch.float32
        assert_close(found.double(), phi.dual(q.double()[:, None], k.double(), q.double()), 1e-5)
        assert phi.dual(1, 0, 2).dtype == torch.float64
        assert phi.dual(q[:0, None], k[:0], q).shape == (0, 5)
        assert phi.dual(0.0, 0.0, 3.0) == 0
    many = torch.linspace(0.1, 2.0, 1500).double()  # more variances than are integrated at once
    assert_close(
        activation("tanh").dual(many, many / 2, many)[700], activation("tanh").dual(many[700], many[700] / 2, many[700])
    )


def test_large_covariances_do_not_overflow() -> None:
    q = float64([1e3, 1e6])
    for name in ("sin", "cos", "erf", "gelu", "rbf"):
        phi = activation(name)
        assert phi.dual(q, 0.99 * q, q).isfinite().all()
        assert phi.dual_derivative(q, q, q).isfinite().all()
    assert_close(activation("cos").diagonal(q), 0.5)


@pytest.mark.parametrize(
    "given, message",
    [
        ("geluu", "nearest: 'gelu'"), ("leaky_relu:x", "expected a slope"), ("tanh:2", "no other name takes"),
        ("hermite", "degree from 0 to 20"), ("monomial:2.5", "degree"), ("rbf:-1", "gamma ≥ 0"),
        ("sin:inf", "frequency"), ("", "unknown activation"), (3, "got int"), (nn.Softmax(-1), "mixes elements"),
        (torch.sum, "mixes elements"), (torch.randn_like, "random"), (torch.log, "NaN or infinite"),
        (math.tanh, "does not run"), (nn.PReLU(3), "does not run"),
    ],
)  # fmt: skip
def test_what_is_no_activation_is_refused_in_one_line(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        activation(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "f", [lambda x: 1 / x, lambda x: (x.square() / 3.9).exp(), lambda x: (300 * x).sin(), lambda x: (9 * x).floor()]
)
def test_a_function_without_a_mean_square_is_refused(f: object) -> None:
    with pytest.raises(ValueError, match="does not converge"):
        activation(f).dual(1.0, 0.5, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given, kinks",
    [("step", ()), (torch.sign, ()), (lambda x: x + x.sign(), ()), (lambda x: (x.abs() > 1) * x, (-1.0, 1.0))],
)
def test_a_jump_has_no_tangent_kernel(given: str, kinks: tuple[float, ...]) -> None:
    phi = activation(given, kinks)
    assert phi.dual(1.0, 0.5, 1.0) > 0
    for average in (lambda: phi.dual_derivative(1.0, 0.5, 1.0), lambda: phi.diagonal_derivative(1.0)):
        with pytest.raises(ValueError, match="jumps"):
            average()


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize(
    "case", [(-1.0, 0.0, 1.0), (1.0, 1.1, 1.0), (1.0, math.nan, 1.0), (math.inf, 1.0, 1.0), (1, -2, 1)]
)
def test_what_is_no_covariance_is_refused(name: str, case: tuple[float, float, float]) -> None:
    phi = activation(name)
    for average in (phi.dual, phi.dual_derivative):
        with pytest.raises(ValueError, match="got a"):
            average(*case)


def test_an_activation_stands_for_itself() -> None:
    tanh = activation("tanh")
    assert activation(tanh) is tanh


def test_every_name_is_an_activation() -> None:
    for name in NAMES:
        degree = ":2" if name in ("monomial", "rectified", "hermite", "optimal") else ""
        assert activation(name + degree).diagonal(1.0) > 0
