"""Classification by regression with a deep kernel, and by what it becomes: points of norm 1, one-hot labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from layerwright.maths.deep_kernels import DeepKernels

# Nearer points are as good as one.
_LEAST = 1e-10
_EPS = float(np.finfo(float).eps)


class Merged(NamedTuple):
    """Different points, the mean of the one-hot labels of each, and how often labels of one point differ."""

    points: np.ndarray
    targets: np.ndarray
    mixed: int


def merged(points: np.ndarray, labels: np.ndarray, classes: int) -> Merged:
    """Points that are there more than once as one: exact regression knows no other way.

    Args:
        points: `[N, columns]`.
        labels: from 0 to classes − 1, `[N]`.
        classes: C.

    Example:
        >>> merged(np.array([[1.0], [0.0], [1.0]]), np.array([0, 1, 1]), 2).targets.tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """
    different, place = np.unique(points, axis=0, return_inverse=True)
    targets = np.zeros((len(different), classes))
    np.add.at(targets, (place.ravel(), labels), 1.0)
    targets /= targets.sum(1, keepdims=True)
    return Merged(different, targets, int((targets.max(1) < 1).sum()))


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 − ρ of rows of norm 1, `[N, M]`, from their differences, in which near rows keep their digits.

    Example:
        >>> distances(np.eye(2), np.eye(2)).round(12).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return np.asarray(np.minimum(cdist(first, second, "sqeuclidean") / 2, 1.0))


class Scores(NamedTuple):
    """What kernel regression gives for queries.

    Attributes:
        values: `[M, C]`, of each query on a scale of its own.
        jitter: what was added to the diagonal, as a share of the largest entry; 0 where the kernel is regular.
    """

    values: np.ndarray
    jitter: float


def regress(kernels: DeepKernels, train: np.ndarray, query: np.ndarray, targets: np.ndarray, tangent: bool) -> Scores:
    """Regression with a deep kernel without ridge, K_query K_train⁻¹ Y, each query on a scale of its own.

    Where K = 1 − s U with s as small as one likes, the shape U is regressed with, and a constant:
    K α = Y is −U β + b = Y, Σβ = s b, β = s α, which stays regular as s goes to 0.

    Args:
        kernels: of some depth.
        train: `distances` of the inputs, `[N, N]`, above 0 off the diagonal.
        query: `distances` of the queries to the inputs, `[M, N]`.
        targets: Y, `[N, C]`.
        tangent: whether to regress with T, not K.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> from layerwright.maths.deep_kernels import deep_kernels
        >>> (nearest,) = deep_kernels(activation("hermite:2"), [2000])
        >>> found = regress(nearest, 1 - np.eye(2), np.array([[0.3, 0.31]]), np.eye(2), tangent=False)
        >>> found.values.round(6)
        array([[1., 0.]])
    """
    inside, outside = kernels.at(train, tangent), kernels.at(query, tangent)
    if kernels.apart:
        matrix = np.exp(inside)
        np.fill_diagonal(matrix, 1.0)
        solution, jitter = _solve(matrix, targets)
        return Scores(np.exp(outside - outside.max(1, keepdims=True)) @ solution, jitter)
    np.fill_diagonal(inside, -np.inf)
    largest = float(inside.max(initial=-np.inf))
    if len(train) == 1:
        return Scores(np.repeat(targets, len(query), 0), 0.0)
    shape = np.exp(inside - largest)
    beta, constant, jitter = _contrasts(shape, targets, math.exp(largest))
    return Scores(constant - np.exp(outside - largest) @ beta, jitter)


def _contrasts(shape: np.ndarray, targets: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, float]:
    """β and b of −U β + b = Y, Σβ = s b: reflected, so that the constant is the first coordinate, −U is definite."""
    n = len(shape)
    root = math.sqrt(n)
    v = np.full((n, 1), 1 / root)
    v[0] -= 1.0
    v /= np.linalg.norm(v)

    def reflected(x: np.ndarray) -> np.ndarray:
        return np.asarray(x - 2 * v @ (v.T @ x))

    w, y = -reflected(reflected(shape).T), reflected(targets)
    solved, jitter = _solve(w[1:, 1:], np.hstack([y[1:], w[1:, :1]]))
    rest, along = solved[:, :-1], solved[:, -1:]
    first = w[:1, 1:]
    constant = (y[:1] - first @ rest) / (root + scale * (w[0, 0] - first @ along) / root)
    total = scale * constant / root
    return reflected(np.vstack([total, rest - along @ total])), constant, jitter


def _solve(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """The solution for a definite matrix, and what had to be added to its diagonal as a share of its largest entry."""
    top = float(np.abs(matrix).max())
    for share in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            factor = cho_factor(matrix + share * top * np.eye(len(matrix)), lower=True)
        except np.linalg.LinAlgError:
            continue
        if float(np.diag(factor[0]).min()) ** 2 > len(matrix) * _EPS * top:
            return np.asarray(cho_solve(factor, right)), share
    raise ValueError("got a kernel that is not positive definite; expected inputs that differ")


def hilbert_scores(query: np.ndarray, targets: np.ndarray, dimension: float) -> np.ndarray:
    """Σ_i y_i / ‖x − x_i‖^d, which needs no fit, each query on a scale of its own.

    Args:
        query: `distances` of the queries to the inputs, `[M, N]`.
        targets: Y, `[N, C]`.
        dimension: d.

    Reference: Devroye, Györfi and Krzyżak (1998), The Hilbert kernel regression estimate.

    Example:
        >>> hilbert_scores(np.array([[0.1, 0.4]]), np.eye(2), 2.0).round(9).tolist()
        [[1.0, 0.25]]
    """
    logs = np.log(np.maximum(query, _LEAST))
    return np.asarray(np.exp(-dimension / 2 * (logs - logs.min(1, keepdims=True))) @ targets)
