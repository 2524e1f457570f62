"""How far features that must stay near where they are collapse, with the classifier at its best all the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from layerwright.maths.class_moments import Classes

# Larger products of the fastest rate at the start with the time take too many steps.
_STIFF = 1e6


class Features(NamedTuple):
    """Features at one time.

    Attributes:
        means: of the classes, `[K, d]`, float64.
        covariance: Σ_W, `[d, d]`, float64.
        moved: ‖H − H_0‖ / ‖H_0‖.
    """

    means: Tensor
    covariance: Tensor
    moved: float


def best_classifier(means: Tensor, covariance: Tensor, counts: Tensor, decay: float) -> Tensor:
    """W*(H) = Y Hᵀ (H Hᵀ + λ_W N/K I)⁻¹, the ridge regression of one-hot labels on features, `[K, d]`.

    Args:
        means: of the classes, `[K, d]`.
        covariance: Σ_W, so that H Hᵀ = Σ n_k μ_k μ_kᵀ + N Σ_W, `[d, d]`.
        counts: n_k, `[K]`.
        decay: λ_W.

    Example:
        >>> one = torch.tensor([[1.0]]).double()
        >>> best_classifier(2 * one, one, torch.tensor([3]), 1.0)  # 3 · 2 / (3 · 4 + 3 · 1 + 3)
        tensor([[0.3333]], dtype=torch.float64)
    """
    weighted = counts.double()[:, None] * means
    total = counts.sum()
    square = means.mT @ weighted + total * covariance
    ridge = decay * float(total) / len(counts) * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square + ridge, weighted.mT).mT


def collapse_path(
    classes: Classes, times: Sequence[float], *, vicinity: float, weight_decay: float, feature_decay: float
) -> list[Features]:
    """Gradient flow of features along the central path, where the classifier is W*(H) at all times.

        L = (1/2N) ‖W*H − Y‖² + (λ_W/2K) ‖W*‖² + (λ_H/2N) ‖H‖² + (β/2N) ‖H − H_0‖²
        dH/dt = −N ∂L/∂H = −W*ᵀ(W*H − Y) − λ_H H − β (H − H_0)

    Whatever N is, features within classes move by one matrix, H − M = A (H_0 − M_0) with
    dA/dt = β I − (W*ᵀW* + λ_H + β) A, so that a step costs K d² + d³.

    Args:
        classes: what the features H_0 are: their class means, counts and Σ_W.
        times: from 0 on, increasing.
        vicinity: β, how strongly features are held where they are.
        weight_decay: λ_W > 0.
        feature_decay: λ_H.

    Returns:
        the features at each time.

    Raises:
        ValueError: Σ_W is not known, or the flow is too fast at the start for its time.

    Reference: arXiv 2210.16658, its model; the reduction to A is derived here.
    """
    if classes.covariance is None:
        raise ValueError("got moments without Σ_W; expected them with covariance=True")
    means, counts = classes.means.mT.contiguous(), classes.counts
    k, d = len(counts), len(means)
    identity = torch.eye(d, dtype=torch.float64)
    start, scatter = torch.cat([means, identity], 1), classes.covariance

    def within(a: Tensor) -> Tensor:
        return a @ scatter @ a.mT

    def pull(state: Tensor) -> Tensor:
        m, a = state[:, :k], state[:, k:]
        w = best_classifier(m.mT, within(a), counts, weight_decay)
        goal = torch.cat([w.mT, torch.zeros_like(identity)], 1)
        return goal - (w.mT @ (w @ state) + feature_decay * state) - vicinity * (state - start)

    w = best_classifier(means.mT, scatter, counts, weight_decay)
    rate = float(torch.linalg.matrix_norm(w, 2)) ** 2 + feature_decay + vicinity
    if rate * max(times) > _STIFF:
        raise ValueError(
            f"got a rate of {rate:.3g} at the start over a time of {max(times):g}; expected a product of {_STIFF:g} at "
            "most: take a shorter time, more weight decay or larger features"
        )
    flow = solve_ivp(
        lambda _, y: pull(torch.from_numpy(y).view(d, k + d)).flatten().numpy(),
        (0.0, float(max(times)) or 1.0), start.flatten().numpy(), t_eval=np.asarray(times, dtype=float),
        rtol=1e-7, atol=1e-10,
    )  # fmt: skip
    size = float((counts * means.square().sum(0)).sum() + counts.sum() * scatter.trace())
    return [_features(torch.from_numpy(y.copy()).view(d, k + d), start, classes, size) for y in flow.y.T]


def _features(state: Tensor, start: Tensor, classes: Classes, size: float) -> Features:
    counts, scatter = classes.counts, classes.covariance
    assert scatter is not None
    k = len(counts)
    a, step = state[:, k:], state - start
    moved = (counts * step[:, :k].square().sum(0)).sum() + counts.sum() * (
        step[:, k:] @ scatter @ step[:, k:].mT
    ).trace()
    return Features(state[:, :k].mT, a @ scatter @ a.mT, float(moved / size) ** 0.5)


def collapse_rate(classes: Classes, weight_decay: float, feature_decay: float) -> float:
    """How fast ln (Tr Σ_W / Tr Σ_B) changes where the flow starts, whatever β is; below 0 features collapse.

        −2 Tr(G Σ_W)/Tr Σ_W + 2 ⟨M, G M − W*ᵀ⟩/‖M‖²,   G = W*ᵀW* + λ_H,   M and W* centred over the classes

    Where β is large features go to H_0 − N ∂L/∂H / β, and the ratio falls by this over β.

    Args:
        classes: of the features.
        weight_decay: λ_W > 0.
        feature_decay: λ_H.

    Raises:
        ValueError: Σ_W is not known or zero, or the class means are all the same.

    Reference: derived here; arXiv 2210.16658 proves that it is below 0 for β = 0.
    """
    scatter = classes.covariance
    if scatter is None or not scatter.trace() > 0:
        raise ValueError("got features that do not vary within classes; expected some spread that can collapse")
    w = best_classifier(classes.means, scatter, classes.counts, weight_decay)
    slope = w.mT @ w + feature_decay * torch.eye(len(scatter), dtype=torch.float64)
    centred = (classes.means - classes.means.mean(0)).mT
    if not centred.any():
        raise ValueError("got class means that are all the same; expected features that differ between classes")
    change = slope @ centred - (w - w.mean(0)).mT
    apart = (centred * change).sum() / centred.square().sum()
    return 2 * float(apart - (slope @ scatter).trace() / scatter.trace())
