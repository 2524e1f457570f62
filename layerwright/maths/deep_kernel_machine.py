"""Deep kernel machines: wide networks whose kernels learn, as Gram matrices between a prior of kernels and the labels.

A layer's Gram matrix is held as G = L A Aᵀ Lᵀ with L the Cholesky factor of the kernel of the layer before and A lower
triangular. At A = 1 the machine is the network as a Gaussian process, and the divergence from it is that of A alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from torch import Tensor

from layerwright.maths.activation import activation

# Of the mean diagonal, added to kernels that are to be factored.
JITTER = 1e-8
# Correlations stay this much below 1, where the slope of ReLU's kernel is infinite.
_APART = 1e-12
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def _relu(q1: Tensor, c: Tensor, q2: Tensor) -> Tensor:
    closed, most = activation("relu").closed, (1 - _APART) * (q1 * q2).sqrt()
    assert closed is not None
    return 2 * closed.dual(q1, torch.minimum(torch.maximum(c, -most), most), q2)


# What a layer makes of the variances and the covariance of its units.
KERNELS: dict[str, Kernel] = {
    "relu": _relu,
    "rbf": lambda q1, c, q2: torch.exp(c - (q1 + q2) / 2),
    "linear": lambda q1, c, q2: c + 0 * (q1 + q2),
}


class _Grams(NamedTuple):
    """Gram matrix of the points that layers are learned at, its products with others, and the others' squares."""

    inner: Tensor
    cross: Tensor
    square: Tensor


@dataclass(frozen=True)
class Machine:
    """A deep kernel machine that has been fitted, or the Gaussian process that it began as.

    Attributes:
        kernel: name of the kernel of every layer.
        points: inputs that Gram matrices are learned at, `[P, d]`.
        factors: A of each layer, `[layers, P, P]`, lower triangular.
        inputs: inputs fitted to, `[N, d]`; the points themselves where all are used.
        targets: `[N, C]`.
        nu: weight of a layer's divergence.
        noise: variance of the targets' noise.
    """

    kernel: str
    points: Tensor
    factors: Tensor
    inputs: Tensor
    targets: Tensor
    nu: float
    noise: float

    def objective(self) -> Tensor:
        """Log-likelihood of the targets less the divergences, in nats; with fewer points than inputs, a bound of it.

        log N(Y; 0, K(G_L) + σ²) − ν Σ_l KL(N(0, G_l) ‖ N(0, K(G_{l−1})))
        """
        grams = self._propagate(self.inputs)
        return self._likelihood(grams[-1]) - self.nu * self.divergences().sum()

    def divergences(self) -> Tensor:
        """KL of each layer from its prior, ½ (‖A‖² − 2 Σ ln A_ii − P), `[layers]`, nats."""
        diagonal = self.factors.diagonal(dim1=-2, dim2=-1)
        return 0.5 * (self.factors.square().sum((-2, -1)) - 2 * diagonal.log().sum(-1) - self.factors.shape[-1])

    def grams(self) -> list[Tensor]:
        """Gram matrices of the points: of the inputs and of each layer, `[P, P]` each."""
        return [state.inner for state in self._propagate(self.points[:0])]

    def predict(self, x: Tensor) -> Tensor:
        """Mean of the outputs at other inputs, `[M, C]`.

        Args:
            x: `[M, d]`.
        """
        here, there = self._propagate(self.inputs)[-1], self._propagate(x)[-1]
        left = _cholesky(_square(KERNELS[self.kernel], here.inner))
        known, asked = (_solve(left, self._cross(state)) for state in (here, there))
        system = known @ known.mT + self.noise * torch.eye(len(left), dtype=left.dtype)
        return asked.mT @ torch.linalg.solve(system, known @ self.targets)

    def _propagate(self, x: Tensor) -> list[_Grams]:
        """Gram matrices by layer, of the points and of others that follow them; of the others' own, the diagonal.

        With i the points and t the others, K of the layer before and W = K_ti K_ii⁻¹,

            G_ti = W G_ii,   G_tt = K_tt − W (K_ii − G_ii) Wᵀ
        """
        width = self.points.shape[1]
        state = _Grams(self.points @ self.points.mT / width, self.points @ x.mT / width, x.square().mean(1))
        states = [state]
        for factor in self.factors:
            kernel = KERNELS[self.kernel]
            left = _cholesky(_square(kernel, state.inner))
            root = left @ factor
            passed = _solve(left, self._cross(state))
            learned = factor.mT @ passed
            own = kernel(state.square, state.square, state.square)
            square = own - passed.square().sum(0) + learned.square().sum(0)
            # A zero vector has no angle: its slope is that of a very small one.
            least = JITTER * float(own.detach().mean()) if len(own) else 0.0
            state = _Grams(root @ root.mT, root @ learned, square.clamp_min(least))
            states.append(state)
        return states

    def _cross(self, state: _Grams) -> Tensor:
        """Kernel of the points with the others, `[P, N]`."""
        return KERNELS[self.kernel](state.inner.diagonal()[:, None], state.cross, state.square[None, :])

    def _likelihood(self, last: _Grams) -> Tensor:
        """Log-likelihood with the kernel's projection on the points, less what that leaves out over 2σ²."""
        kernel = KERNELS[self.kernel]
        half = _solve(_cholesky(_square(kernel, last.inner)), self._cross(last))
        n, outputs = self.targets.shape
        system = torch.linalg.cholesky(half @ half.mT / self.noise + torch.eye(len(half), dtype=half.dtype))
        explained = _solve(system, half @ self.targets) / self.noise
        left_out = (kernel(last.square, last.square, last.square) - half.square().sum(0)).clamp_min(0.0).sum()
        logs = 2 * system.diagonal().log().sum() + n * math.log(2 * math.pi * self.noise) + left_out / self.noise
        return -0.5 * (outputs * logs + self.targets.square().sum() / self.noise - explained.square().sum())


def process(
    x: Tensor, y: Tensor, *, depth: int = 2, kernel: str = "relu", nu: float = 1.0, noise: float = 0.1,
    points: Tensor | None = None,
) -> Machine:  # fmt: skip
    """The network as a Gaussian process, before anything is learned: all G_l = K(G_{l−1}).

    Args:
        x: inputs, `[N, d]`, float64.
        y: targets, `[N, C]`, float64.
        depth: layers whose Gram matrices can be learned.
        kernel: "relu", "rbf" (exp(−|u − v|²/2)) or "linear".
        nu: ν, above 0: the width of a layer over the number of outputs that it is asked for.
        noise: σ², above 0.
        points: `[P, d]` that Gram matrices are learned at; left out, all inputs.
    """
    at = x if points is None else points
    factors = torch.eye(len(at), dtype=x.dtype).repeat(depth, 1, 1)
    return Machine(kernel, at, factors, x, y, nu, noise)


def fit(machine: Machine, steps: int = 200) -> Machine:
    """The machine at a maximum of its objective, by L-BFGS over the factors A from where they are.

    Args:
        machine: of `process`.
        steps: at most.

    Returns:
        another machine, of an objective at least as high.
    """
    depth, p, _ = machine.factors.shape
    rows, columns = torch.tril_indices(p, p)
    on_diagonal = rows == columns

    def factors(flat: Tensor) -> Tensor:
        """Diagonals are kept as logarithms."""
        entries = torch.where(on_diagonal, flat.exp(), flat)
        return torch.zeros(depth, p, p, dtype=flat.dtype).index_put(
            (torch.arange(depth)[:, None], rows, columns), entries
        )

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(flat.reshape(depth, -1)).requires_grad_()
        value = -replace(machine, factors=factors(at)).objective() / len(machine.inputs)
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy().ravel()

    entries = machine.factors[:, rows, columns]
    start = torch.where(on_diagonal, entries.clamp_min(1e-300).log(), entries)
    found = minimize(
        loss,
        start.numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6},
    )
    return replace(machine, factors=factors(torch.from_numpy(found.x.reshape(depth, -1))))


def linear_optimum(kernel: np.ndarray, targets: np.ndarray, nu: float) -> np.ndarray:
    """The Gram matrix of one linear layer without noise, in closed form.

        G = K^½ H K^½,   ν H² − (ν − C) H = S = K^−½ Y Yᵀ K^−½

    For ν = C it is the geometric mean of K and YYᵀ/C, half way from the inputs to the labels.

    Args:
        kernel: K of the inputs, `[N, N]`, positive definite.
        targets: Y, `[N, C]`.
        nu: ν.

    Example:
        >>> linear_optimum(np.eye(1) * 4, np.array([[3.0]]), nu=1.0)  # √(4 · 9)
        array([[6.]])

    Reference: arXiv 2108.13097; the case ν ≠ C is derived here.
    """
    root = np.real(sqrtm(kernel))
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ targets @ targets.T @ inverse)
    free = nu - targets.shape[1]
    h = (free + np.sqrt(free**2 + 4 * nu * values.clip(0.0))) / (2 * nu)
    return np.asarray(root @ (vectors * h) @ vectors.T @ root)


def spread_points(x: Tensor, count: int, kernel: str = "relu") -> list[int]:
    """Inputs that tell most of the others' kernel, each the one least explained by those before.

    Args:
        x: `[N, d]`.
        count: P, up to N.
        kernel: as in `process`.

    Returns:
        their places, P of them.

    Example:
        >>> spread_points(torch.tensor([[0.0], [0.1], [5.0]]), 2, "rbf")
        [0, 2]
    """
    k = _square(KERNELS[kernel], x @ x.mT / x.shape[1])
    left, rest = torch.zeros_like(k[:, :0]), k.diagonal().clone()
    least, taken = 1e-12 * float(rest.max()), list[int]()
    for _ in range(count):
        place = int(rest.argmax())
        taken.append(place)
        if rest[place] > least:  # else it is a copy of others, and tells nothing
            column = (k[:, place] - left @ left[place]) / rest[place].sqrt()
            left, rest = torch.cat([left, column[:, None]], 1), (rest - column.square()).clamp_min(0.0)
        rest[taken] = -1.0
    return taken


def _square(kernel: Kernel, gram: Tensor) -> Tensor:
    """Kernel of points with themselves; the diagonal is by its own form, which has a slope there."""
    q, itself = gram.diagonal(), torch.eye(len(gram), dtype=torch.bool)
    between = kernel(q[:, None], gram.masked_fill(itself, 0.0), q[None, :])
    return torch.where(itself, kernel(q, q, q)[:, None], between)


def _cholesky(matrix: Tensor) -> Tensor:
    jitter = JITTER * matrix.diagonal().mean()
    return torch.linalg.cholesky(matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype))


def _solve(left: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(left, right, upper=False)
