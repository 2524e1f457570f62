"""How much a layer can collapse the features that it is given, if it may change them only so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.class_moments import Classes, ClassMoments
from layerwright.maths.collapse import between, etf_error, variability
from layerwright.maths.collapse_flow import Features, collapse_path, collapse_rate

_LOOKS, _SHOWN = 41, 5


@theory(paper="2210.16658")
def collapse_perturbation(
    features: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    vicinity: Sequence[float] = (10.0, 1.0, 0.1, 0.01, 0.0),
    weight_decay: float = 5e-3,
    feature_decay: float = 1e-3,
    time: float = 100.0,
    classes: int = 4,
    samples: int = 30,
    width: int = 16,
    spread: float = 1.0,
    seed: int = 0,
) -> Prediction:
    """Collapse of features that must stay in the vicinity of those that a layer is given.

    With H_0 the features given, Y their one-hot labels, N samples of K classes and β the `vicinity`,

        L = (1/2N) ‖WH − Y‖² + (λ_W/2K) ‖W‖² + (λ_H/2N) ‖H‖² + (β/2N) ‖H − H_0‖²
        dH/dt = −N ∂L/∂H from H_0,   W = Y Hᵀ (H Hᵀ + λ_W N/K I)⁻¹ at all times

    With β = 0 the variance within classes over that between them falls all the way, in the end to nothing; with others
    it may rise again a little. The larger β, the nearer to H_0 features stay, and the less they collapse: for large β
    by the rate of the flow at its start over β, in the logarithm. Layers in turn, each in the vicinity of what the one
    before gives, collapse further.

    Assumes:
        features that may move freely but for β, as if the layer before could give any; the squared error, no bias, and
        a classifier that is always at its best.

    Args:
        features: H_0, `[N, d]`. Left out: classes are drawn.
        labels: class of each, `[N]`, whole numbers from 0 on.
        vicinity: β, one or more, from 0 on.
        weight_decay: λ_W.
        feature_decay: λ_H.
        time: how long features flow; they have settled where β · time is above 5.
        classes: K that are drawn, with means N(0, I/d).
        samples: of each.
        width: d.
        spread: standard deviation within classes over that of the means.
        seed: of the draw.

    Returns:
        by β, infinite for the features as given: `moved`, ‖H − H_0‖/‖H_0‖; `variance_ratio`, Tr Σ_W / Tr Σ_B, and what
        it would be `to_first_order` in 1/β; `nc1`, Tr(Σ_W Σ_B†)/K; and `etf_error` of the class means.

    Raises:
        UserError: sizes or decays that cannot be used, only one of the arrays, or arrays that do not fit, are not
            finite, of one class only, or whose classes all have one mean or no spread.

    Example:
        >>> found = collapse_perturbation(vicinity=[10, 0.1]).table
        >>> found["variance_ratio"].round(2).tolist(), found["moved"].round(2).tolist()
        ([1.3, 1.22, 0.92], [0.0, 0.03, 0.3])

    Reference: arXiv 2210.16658.
    """
    betas = _betas(vicinity)
    _check(weight_decay, feature_decay, time, spread, {"classes": classes, "samples": samples, "width": width})
    moments = _moments(features, labels, classes, samples, width, spread, seed)
    times = [0.0, *np.geomspace(time / 1e3, time, _LOOKS - 1).tolist()]
    rows: list[dict[str, float]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    with in_one_line(ValueError):
        rate = collapse_rate(moments, weight_decay, feature_decay)
        for beta in betas:
            path = collapse_path(moments, times, vicinity=beta, weight_decay=weight_decay, feature_decay=feature_decay)
            rows += [_row(math.inf, path[0])] if not rows else []
            rows.append(_row(beta, path[-1]) | {"to_first_order": _first_order(rows[0], rate, beta)})
            curves[f"β = {beta:g}"] = [
                (float(t), _row(beta, at)["variance_ratio"]) for t, at in zip(times[1:], path[1:])
            ]
    table = pd.DataFrame(rows)
    units = dict.fromkeys(table.columns, "1")
    picture = Picture(
        dict(list(curves.items())[:_SHOWN]), across="time", up="Tr Σ_W / Tr Σ_B (1)", log=True, log_across=True
    )
    return Prediction(table, units, _notes(rate, betas, time), picture)


def _betas(vicinity: Sequence[float]) -> list[float]:
    betas = [vicinity] if isinstance(vicinity, (int, float)) else list(vicinity)
    if not betas or not all(0 <= b < math.inf for b in betas):
        raise UserError(f"got vicinity={betas}; expected numbers from 0 on, as in --set vicinity=[1,0.1]")
    return [float(b) for b in betas]


def _check(weight_decay: float, feature_decay: float, time: float, spread: float, sizes: dict[str, int]) -> None:
    if not (0 < weight_decay < math.inf and 0 <= feature_decay < math.inf):
        raise UserError(
            f"got weight_decay={weight_decay}, feature_decay={feature_decay}; expected the first above 0, the "
            "second from 0 on"
        )
    if not (0 < time < math.inf and 0 < spread < math.inf):
        raise UserError(f"got time={time}, spread={spread}; expected both above 0")
    for name, value in sizes.items():
        if not (isinstance(value, int) and value >= 2):
            raise UserError(f"got {name}={value}; expected a whole number from 2 on")


def _moments(
    features: np.ndarray | None, labels: np.ndarray | None, classes: int, samples: int, width: int, spread: float,
    seed: int,
) -> Classes:  # fmt: skip
    if (features is None) != (labels is None):
        raise UserError("got one of the arrays features and labels; expected both or neither")
    if features is None or labels is None:
        generator = np.random.default_rng(seed)
        labels = np.repeat(np.arange(classes), samples)
        means, noise = (generator.standard_normal((n, width)) / math.sqrt(width) for n in (classes, len(labels)))
        features = means[labels] + spread * noise
    try:
        h, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("got features or labels that are no numbers; expected arrays of numbers") from None
    if h.ndim != 2 or not len(h) or y.shape != h.shape[:1] or not ((y >= 0) & (y == y.round())).all():
        raise UserError(
            f"got features {h.shape} and labels {y.shape}; expected [samples, d] and a whole number from 0 on for each"
        )
    _, places = np.unique(y, return_inverse=True)
    moments = ClassMoments(int(places.max()) + 1, h.shape[1])
    with in_one_line(ValueError):
        moments.add(torch.from_numpy(h), torch.from_numpy(places))
        found = moments.result()
        between(found.means)
    return found


def _row(beta: float, at: Features) -> dict[str, float]:
    spread = between(at.means)
    ratio = float(at.covariance.trace()) / float(spread.values.sum())
    return {
        "vicinity": beta, "moved": at.moved, "variance_ratio": ratio, "to_first_order": ratio,
        "nc1": variability(at.covariance, spread), "etf_error": etf_error(spread),
    }  # fmt: skip


def _first_order(start: dict[str, float], rate: float, beta: float) -> float:
    return start["variance_ratio"] * math.exp(min(rate / beta, 700.0)) if beta else math.nan


def _notes(rate: float, betas: list[float], time: float) -> list[str]:
    notes = [f"at the start ln (Tr Σ_W / Tr Σ_B) changes at a rate of {rate:.4g}, whatever the vicinity"]
    if any(0 < b < abs(rate) for b in betas):
        notes.append(f"to_first_order says nothing where the vicinity is below {abs(rate):.2g}, the size of that rate")
    if slow := [b for b in betas if b * time < 5]:
        shown = ", ".join(f"{b:g}" for b in slow)
        notes.append(f"still on the way at time {time:g}: vicinity {shown}; a longer time collapses more")
    return notes
