"""Infinitely wide networks in training: the Gaussian ensemble of their outputs at any time, and the posterior.

Training is on Σ (f − y)² / 2N, so that modes are those of T/N, as in `kernel_regression`. Kernels are arrays: the
covariance K of an output over initialisations, and the tangent kernel T; outputs are independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from layerwright.maths.kernel_regression import jitter_for, rounding


class Training(NamedTuple):
    """A task in the modes of its tangent kernel, T/N = Σ λ_i u_i u_iᵀ.

    Attributes:
        values: λ, `[N]`, ascending; rounding is set to 0, and what lies there is never learned.
        vectors: u, the columns of `[N, N]`.
        spread: UᵀKU, `[N, N]`.
        along: Uᵀy, `[N, C]`.
    """

    values: np.ndarray
    vectors: np.ndarray
    spread: np.ndarray
    along: np.ndarray


class Progress(NamedTuple):
    """Shares of the error along each mode, `[N]`: what is learned of it and what is left; together 1."""

    learned: np.ndarray
    left: np.ndarray


class Query(NamedTuple):
    """Kernels of M queries: T_* U and K_* U against the samples, `[M, N]`, and K_** among them, `[M, M]`."""

    tangent: np.ndarray
    nngp: np.ndarray
    prior: np.ndarray


class Gaussian(NamedTuple):
    """Outputs of an ensemble at M points: mean `[M, C]`, and the covariance `[M, M]` of each of the C outputs."""

    mean: np.ndarray
    covariance: np.ndarray


def decompose(nngp: np.ndarray, ntk: np.ndarray, targets: np.ndarray) -> Training:
    """Find the modes of a task: one eigendecomposition, for all times.

    Args:
        nngp: K of the samples, `[N, N]`.
        ntk: T of the samples, `[N, N]`.
        targets: y, `[N, C]`.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> decompose(np.eye(2), np.diag([2.0, 4.0]), np.ones((2, 1))).values.tolist()
        [1.0, 2.0]
    """
    n = len(targets)
    if not (nngp.shape == ntk.shape == (n, n) and targets.ndim == 2):
        raise ValueError(f"got kernels {nngp.shape}, {ntk.shape} and targets {targets.shape}; expected [N, N], [N, C]")
    values, vectors = np.linalg.eigh(ntk / n)
    values[values <= rounding(values)] = 0.0
    return Training(values, vectors, vectors.T @ nngp @ vectors, vectors.T @ targets)


def flow(values: np.ndarray, time: float) -> Progress:
    """Gradient flow: left = e^{−λt}.

    Args:
        values: λ of T/N, `[N]`.
        time: t, learning rate times steps, from 0 to infinity.

    Example:
        >>> flow(np.array([0.0, 1.0]), np.inf).left.tolist()
        [1.0, 0.0]
    """
    power = -np.multiply(values, time, out=np.zeros_like(values), where=values > 0)
    return Progress(-np.expm1(power), np.exp(power))


def descent(values: np.ndarray, rate: float, steps: int, momentum: float = 0.0) -> Progress:
    """Gradient descent in steps, with heavy-ball momentum: e_{k+1} = (1 + μ − ηλ) e_k − μ e_{k−1}, e_{−1} = e_0.

    Args:
        values: λ of T/N, `[N]`.
        rate: η; below `largest_rate` the error falls.
        steps: k, from 0 on.
        momentum: μ, from 0 to below 1.

    Example:
        >>> descent(np.array([1.0]), 0.5, 2).left.tolist()
        [0.25]
    """
    step = np.zeros((len(values), 2, 2))
    step[:, 0, 0], step[:, 0, 1], step[:, 1, 0] = 1 + momentum - rate * values, -momentum, 1.0
    left = np.linalg.matrix_power(step, steps)[:, 0].sum(1)
    return Progress(1 - left, left)


def largest_rate(values: np.ndarray, momentum: float = 0.0) -> float:
    """The learning rate below which gradient descent converges: 2 (1 + μ) / λ_max.

    Example:
        >>> largest_rate(np.array([0.5, 4.0])), largest_rate(np.array([4.0]), momentum=0.5)
        (0.5, 0.75)
    """
    return 2 * (1 + momentum) / float(values.max())


def query(training: Training, nngp: np.ndarray, ntk: np.ndarray, prior: np.ndarray) -> Query:
    """Bring the kernels of queries into the modes of a task.

    Args:
        training: of `decompose`.
        nngp: K of queries against samples, `[M, N]`.
        ntk: T of queries against samples, `[M, N]`.
        prior: K among queries, `[M, M]`.
    """
    return Query(ntk @ training.vectors, nngp @ training.vectors, prior)


def outputs(training: Training, progress: Progress, points: Query | None = None) -> Gaussian:
    """Outputs of an ensemble of wide networks in training, each from an initialisation of its own.

        f_t(x) = f_0(x) + T(x, X) T⁻¹ (1 − e^{−Tt/N}) (y − f_0(X)),   f_0 ~ N(0, K)

    Args:
        training: of `decompose`.
        progress: how far it is, of `flow` or `descent`.
        points: of `query`; left out, the samples.

    Returns:
        O(N²) for each time and point.

    Example:
        >>> task = decompose(np.eye(1), np.eye(1), np.full((1, 1), 3.0))
        >>> outputs(task, Progress(np.array([0.5]), np.array([0.5])))
        Gaussian(mean=array([[1.5]]), covariance=array([[0.25]]))

    Reference: arXiv 1806.07572; the covariance is derived here.
    """
    if points is None:
        back = training.vectors * progress.left
        mean = training.vectors @ (progress.learned[:, None] * training.along)
        return Gaussian(mean, back @ training.spread @ back.T)
    size = len(training.values) * training.values
    gain = points.tangent * np.divide(progress.learned, size, out=np.zeros_like(size), where=size > 0)
    cross = gain @ points.nngp.T
    return Gaussian(gain @ training.along, points.prior - cross - cross.T + gain @ training.spread @ gain.T)


def errors_left(training: Training, progress: Progress) -> Gaussian:
    """Uᵀ(f_t − y) on the samples: as `outputs`, but O(N²) for each time, for rotations keep a squared error.

    Example:
        >>> task = decompose(np.eye(1), np.eye(1), np.full((1, 1), 3.0))
        >>> errors_left(task, flow(task.values, 0.0)).mean.ravel().tolist()
        [-3.0]
    """
    left = progress.left[:, None]
    return Gaussian(-left * training.along, left * training.spread * left.T)


def squared_error(errors: Gaussian) -> tuple[float, float]:
    """Mean and standard deviation over an ensemble of Σ ‖f − y‖² / M over M points, summed over outputs.

        E = (‖m‖² + C tr Σ) / M,   Var = (4 Σ_c m_cᵀ Σ m_c + 2 C tr Σ²) / M²

    Args:
        errors: f − y, of mean m and covariance Σ.

    Example:
        >>> squared_error(Gaussian(np.zeros((2, 1)), np.eye(2)))  # a chi-square of 2 degrees of freedom, over 2
        (1.0, 1.0)
    """
    mean, covariance = errors
    points, count = mean.shape
    middle = ((mean**2).sum() + count * covariance.trace()) / points
    variance = 4 * (mean * (covariance @ mean)).sum() + 2 * count * (covariance**2).sum()
    return float(middle), float(max(variance, 0.0) ** 0.5 / points)


def posterior(
    nngp: np.ndarray, targets: np.ndarray, cross: np.ndarray, prior: np.ndarray, noise: float = 0.0
) -> tuple[Gaussian, float]:
    """Outputs of wide networks drawn from the posterior: regression by the Gaussian process of covariance K.

        mean = K_* (K + σ²)⁻¹ y,   covariance = K_** − K_* (K + σ²)⁻¹ K_*ᵀ

    Without noise these are also the networks of which only the last layer is trained, at the end.

    Args:
        nngp: K of the samples, `[N, N]`.
        targets: y, `[N, C]`.
        cross: K of queries against samples, `[M, N]`.
        prior: K among queries, `[M, M]`.
        noise: σ², the variance of the targets' noise, from 0 on.

    Returns:
        the outputs without noise of their own, and the jitter: what a singular K + σ² was given beyond σ².

    Example:
        >>> found, jitter = posterior(np.eye(1), np.full((1, 1), 2.0), np.full((1, 1), 0.5), np.eye(1), noise=3.0)
        >>> found.mean.item(), found.covariance.item(), jitter
        (0.25, 0.9375, 0.0)
    """
    values, vectors = np.linalg.eigh(nngp)
    values = values.clip(0.0) + noise
    jitter = jitter_for(values)
    root = cross @ vectors / np.sqrt(values + jitter)
    mean = root @ (vectors.T @ targets / np.sqrt(values + jitter)[:, None])
    return Gaussian(mean, prior - root @ root.T), jitter
