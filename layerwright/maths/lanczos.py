"""Eigenvalues of a symmetric matrix that is known by its products with vectors only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# Up to this size the matrix itself is made, and everything is exact.
EXACT = 256
_STEPS_FOR_SCALE = 8
_RESTARTS = 200
# Share of the largest eigenvalue below which one counts as zero.
_BULK = 0.01


def dense(product: Product, size: int) -> Tensor:
    """The matrix itself, `[n, n]`, float64, from n products; made symmetric, which rounding in them is not.

    Example:
        >>> dense(lambda v: v * torch.tensor([2.0, 1.0]), 2).tolist()
        [[2.0, 0.0], [0.0, 1.0]]
    """
    columns = [product(v).double() for v in torch.eye(size, dtype=torch.float64)]
    matrix = torch.stack(columns, dim=1) if columns else torch.zeros(0, 0, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def from_matrix(product: Product, size: int) -> Product:
    """The same product, of the matrix itself where that is small: many small questions then cost n products in all."""
    if size > EXACT:
        return product
    matrix = dense(product, size)
    return lambda v: matrix @ v.double()


class Eigen(NamedTuple):
    """Eigenvalues, largest first, `[k]`, and their vectors, `[n, k]`, float64."""

    values: Tensor
    vectors: Tensor


def largest(product: Product, size: int, count: int = 1, *, tolerance: float = 1e-5, seed: int = 0) -> Eigen:
    """The largest eigenvalues by sign, of a matrix H of n rows; for the smallest give the product of −H.

        H v = λ v,   λ_1 ≥ λ_2 ≥ … ≥ λ_k

    Exact up to 256 rows. Above, by ARPACK's restarted Lanczos on H/s + 1 with s ≈ ‖H‖: eigenvalues near zero converge
    as well as others, and each is right to 2 · tolerance · ‖H‖, most to the square of that.

    Args:
        product: H v of a float64 vector.
        size: n.
        count: k, at most n are given.
        tolerance: of the residuals ‖H v − λ v‖, as a share of (λ + s).
        seed: draws the vector to start from.

    Raises:
        ArithmeticError: the eigenvalues did not converge.

    Example:
        >>> largest(lambda v: v * torch.tensor([2.0, 3.0, -7.0]), 3, 2).values.tolist()
        [3.0, 2.0]
    """
    if size <= max(EXACT, 4 * count):
        values, vectors = torch.linalg.eigh(dense(product, size))
        return Eigen(values.flip(0)[:count], vectors.flip(1)[:, :count])
    start = _normal(size, seed)
    scale = float(tridiagonal(product, start, _STEPS_FOR_SCALE).nodes.abs().max())
    if scale == 0.0:
        return Eigen(torch.zeros(count).double(), torch.eye(size, count, dtype=torch.float64))

    def shifted(v: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.array(v, dtype=float).ravel())
        return (product(x).double() / scale + x).numpy()

    operator = LinearOperator((size, size), matvec=shifted, dtype=np.float64)
    try:
        found, vectors = eigsh(operator, count, which="LA", v0=start.numpy(), tol=tolerance, maxiter=_RESTARTS)
    except ArpackNoConvergence as error:
        raise ArithmeticError(
            f"{len(error.eigenvalues)} of {count} eigenvalues converged; expected all; ask for fewer, or compute in a "
            "wider dtype"
        ) from None
    order = np.argsort(-found)
    return Eigen(scale * (torch.from_numpy(found[order]) - 1.0), torch.from_numpy(vectors[:, order].copy()))


def outliers(values: Tensor) -> tuple[int, float]:
    """How many of the largest eigenvalues stand apart, and by what factor: those above the largest ratio in the list.

        n = argmax_j λ_j / max(λ_{j+1}, λ_1 / 100),   j = 1 … k − 1

    What is below 1 % of the largest counts as the bulk around zero. There is always a largest ratio: a factor near 1
    says that nothing stands apart.

    Args:
        values: λ_1 ≥ … ≥ λ_k.

    Returns:
        n and the ratio, from 1 to 100; (0, 1.0) where there are fewer than two values or none is positive.

    Example:
        >>> outliers(torch.tensor([8.0, 6.0, 0.5, 0.25]))
        (2, 12.0)
    """
    if len(values) < 2 or not values[0] > 0:
        return 0, 1.0
    floored = values.clamp_min(_BULK * float(values[0]))
    ratios = floored[:-1] / floored[1:]
    place = int(ratios.argmax())
    return place + 1, float(ratios[place])


def traces(product: Product, size: int, probes: int = 8, seed: int = 0) -> Tensor:
    """Hutchinson's estimates of the trace, `[k]`, float64, one a probe of random signs; exact up to 256 rows.

        tr H = E zᵀ H z,   z_i = ±1

    Matrices of one size see the same probes, so that differences of estimates are estimates of the difference.

    Example:
        >>> traces(lambda v: v * torch.tensor([2.0, 3.0]), 2)
        tensor([5.], dtype=torch.float64)
    """
    if size <= EXACT:
        return dense(product, size).trace().reshape(1)
    return torch.stack([z @ product(z).double() for z in _signs(size, probes, seed)])


def with_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first axis, of probes, and its standard error; a single sample is exact.

    Example:
        >>> [x.item() for x in with_error(torch.tensor([1.0, 3.0]))]
        [2.0, 1.0]
    """
    if len(samples) == 1:
        return samples[0], torch.zeros_like(samples[0])
    return samples.mean(0), samples.std(0) / math.sqrt(len(samples))


class Quadrature(NamedTuple):
    """A spectrum as points with weights, one set a probe: ∫ f(λ) dρ(λ) ≈ Σ_i w_i f(λ_i) = tr f(H) / n.

    Attributes:
        nodes: λ, `[probes, steps]`.
        weights: w, `[probes, steps]`, which sum to 1 in each probe.
    """

    nodes: Tensor
    weights: Tensor

    def moment(self, power: int) -> tuple[Tensor, Tensor]:
        """The mean of λᵖ, tr Hᵖ / n, and its standard error over the probes."""
        return with_error((self.weights * self.nodes**power).sum(-1))

    def density(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """The density on a grid `[g]`, seen through a Gaussian of a width, and its standard error over the probes.

        ρ(x) = Σ_i w_i exp(−(x − λ_i)² / 2 width²) / (√(2π) width)
        """
        away = (grid[:, None, None] - self.nodes) / width
        bells = torch.exp(-0.5 * away.square()) / (math.sqrt(2 * math.pi) * width)
        return with_error((self.weights * bells).sum(-1).T)

    def grid(self, points: int, width: float) -> Tensor:
        """Evenly spaced values `[points]` from below the smallest node to above the largest, five widths out."""
        low, high = self._ends()
        return torch.linspace(low - 5 * width, high + 5 * width, points, dtype=torch.float64)

    def range(self) -> float:
        """The largest node less the smallest."""
        low, high = self._ends()
        return high - low

    def _ends(self) -> tuple[float, float]:
        held = self.nodes[self.weights > 0]
        return float(held.min()), float(held.max())


def spectral_quadrature(product: Product, size: int, *, steps: int = 40, probes: int = 8, seed: int = 0) -> Quadrature:
    """The whole spectrum by stochastic Lanczos: Gauss quadrature of each of some random probes.

    From a probe z of random signs, m steps of Lanczos give a small tridiagonal matrix; its eigenvalues are the nodes,
    the squared first components of its eigenvectors the weights. Moments up to 2m − 1 are those of zᵀ Hᵖ z / n. Exact
    up to 256 rows.

    Args:
        product: H v of a float64 vector.
        size: number of rows n.
        steps: m; so many vectors of n numbers are held.
        probes: number of probes.
        seed: draws them.

    Example:
        >>> found = spectral_quadrature(lambda v: v * torch.tensor([1.0, 2.0, 6.0]), 3)
        >>> [x.item() for x in found.moment(1)]
        [3.0, 0.0]
    """
    if size <= EXACT:
        values = torch.linalg.eigvalsh(dense(product, size))
        return Quadrature(values[None], torch.full_like(values, 1.0 / size)[None])
    found = [tridiagonal(product, z, steps) for z in _signs(size, probes, seed)]
    return Quadrature(torch.cat([q.nodes for q in found]), torch.cat([q.weights for q in found]))


def tridiagonal(product: Product, start: Tensor, steps: int) -> Quadrature:
    """Lanczos from one vector: eigenvalues `[1, steps]` and weights of the tridiagonal matrix.

    Each new vector is made orthogonal to all before it, twice, so that no eigenvalue comes up again as a ghost. Where
    the start lies in a smaller invariant space there are fewer nodes: the others repeat the last, with weight zero.
    """
    steps = min(steps, len(start))
    basis = torch.zeros(steps, len(start), dtype=torch.float64)
    basis[0] = start.double() / start.double().norm()
    diagonal, beside = [], []
    for k in range(steps):
        after = product(basis[k]).double()
        diagonal.append(float(basis[k] @ after))
        for _ in range(2):
            after = after - basis[: k + 1].T @ (basis[: k + 1] @ after)
        length = float(after.norm())
        if k + 1 == steps or length <= 1e-10 * max(map(abs, diagonal)):
            break
        beside.append(length)
        basis[k + 1] = after / length
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(small + torch.diag(off, 1) + torch.diag(off, -1))
    left = (0, steps - len(values))
    nodes = torch.cat([values, values[-1:].expand(left[1])])
    return Quadrature(nodes[None], torch.nn.functional.pad(vectors[0].square(), left)[None])


def _normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _signs(size: int, probes: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2.0 * torch.randint(0, 2, (size,), generator=generator).double() - 1.0 for _ in range(probes)]
