"""Regression with a fixed kernel: what gradient flow learns first, and the error on the sample left out."""

from __future__ import annotations

import math

import numpy as np


def training_error(eigenvalues: np.ndarray, along: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean squared error left after training by gradient flow on Σ (f − y)² / 2N, from f = 0.

        error(t) = Σ_i (u_iᵀ y)² e^{−2 λ_i t} / N,   T/N = Σ λ_i u_i u_iᵀ

    Args:
        eigenvalues: λ of T/N, `[N]`, from 0 on.
        along: (u_iᵀ y)², summed over outputs, `[N]`.
        times: t, the steps of gradient descent times their learning rate.

    Example:
        >>> training_error(np.array([1.0]), np.array([3.0]), np.array([0.0, np.log(3) / 2])).round(6).tolist()
        [3.0, 1.0]

    Reference: arXiv 1806.07572.
    """
    return np.asarray(np.exp(-2 * np.outer(times, eigenvalues)) @ along / len(along))


def time_to_learn(eigenvalues: np.ndarray, along: np.ndarray, left: float) -> float:
    """Time after which that share of the error of `training_error` is left; infinite where it never is.

    Example:
        >>> round(time_to_learn(np.array([0.5]), np.array([2.0]), math.exp(-3)), 6)
        3.0
    """
    goal, top = left * along.sum() / len(along), float(eigenvalues.max(initial=0.0))
    if along[eigenvalues > 0].sum() <= (1 - left) * along.sum() or top <= 0:
        return math.inf
    # The error is convex and falls in t, so that it is bracketed by doubling and then halved to rounding.
    low, high = 0.0, 1 / top
    while training_error(eigenvalues, along, np.array([high]))[0] > goal:
        low, high = high, 2 * high
        if not math.isfinite(high):
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        above = training_error(eigenvalues, along, np.array([middle]))[0] > goal
        low, high = (middle, high) if above else (low, middle)
    return high


def leave_one_out(kernel: np.ndarray, targets: np.ndarray, jitter: float = 0.0) -> np.ndarray:
    """What regression with this kernel gets wrong at each sample when it is fitted on all others.

        y_i − f₋ᵢ(x_i) = [K⁻¹ y]_i / [K⁻¹]_ii,   K with the jitter on its diagonal

    Args:
        kernel: K, `[N, N]`, positive definite with the jitter.
        targets: y, `[N, C]`.
        jitter: what is added to the diagonal, in the kernel's units.

    Returns:
        the residuals, `[N, C]`.

    Raises:
        numpy.linalg.LinAlgError: K is singular.

    Example:
        >>> leave_one_out(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0], [1.0]])).tolist()  # 1 − 1/2
        [[0.5], [0.5]]
    """
    n = len(kernel)
    inverse = np.linalg.inv(kernel + jitter * np.eye(n))
    return np.asarray((inverse @ targets) / inverse.diagonal()[:, None])


def rounding(eigenvalues: np.ndarray) -> float:
    """Up to which eigenvalues of a kernel are rounding: their number times the largest, times 2⁻⁵².

    Example:
        >>> rounding(np.array([1.0, 2.0])) == 2**-50
        True
    """
    return len(eigenvalues) * float(np.finfo(float).eps) * float(eigenvalues.max())


def jitter_for(eigenvalues: np.ndarray) -> float:
    """What a kernel of these eigenvalues needs on its diagonal to be inverted: 0 where it is regular.

    Example:
        >>> jitter_for(np.array([1.0, 2.0])), jitter_for(np.array([0.0, 2.0]))
        (0.0, 2e-10)
    """
    return 0.0 if eigenvalues.min() > rounding(eigenvalues) else 1e-10 * float(eigenvalues.max())
