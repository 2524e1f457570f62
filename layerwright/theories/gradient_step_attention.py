"""What layers of linear attention that take steps of gradient descent predict for a query in context."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from torch import Tensor

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.in_context import Contexts, least_squares, whole_context
from layerwright.maths.linear_attention import (
    best_corrected,
    best_step,
    corrected_descent,
    gradient_step_layer,
    linear_attention,
    prediction,
    tokens,
)
from layerwright.maths.regression_tasks import brought_tasks, regression_tasks


@theory(paper="2212.07677")
def gradient_step_attention(
    xs: np.ndarray | None = None,
    ys: np.ndarray | None = None,
    *,
    layers: int = 5,
    step: float | None = None,
    points: int = 20,
    dimensions: int = 10,
    noise: float = 0.0,
    tasks: int = 1000,
    seed: int = 0,
) -> Prediction:
    """Error of layers of linear attention that are steps of gradient descent on the examples in their context.

    With tokens e_i = (x_i, y_i) and the query's target hidden as 0, one layer with

        W_K = W_Q = diag(I, 0),   W_V = −I,   P = diag(γ I, η),   e_j ← e_j + P Σ_i W_V e_i (W_K e_i)ᵀ W_Q e_j

    is one step w ← w − η Σ (wᵀx_i − y_i) x_i from w = 0: targets become residuals, and minus the query's target the
    prediction. With γ > 0 it also evens out the spread of the points (GD++), so that later steps may be longer.

    Assumes:
        linear attention (no softmax), one head, the same weights in all layers; tasks that are made here are
        y = wᵀx + ε with w ~ N(0, I), x ~ N(0, I), ε ~ N(0, noise²), so that the best step of one layer is
        1/(points + dimensions + 1 + noise²).

    Args:
        xs: points of a task, `[T + 1, d]`, or of N tasks, `[N, T + 1, d]`; the last point is the query. Left out: tasks
            are made.
        ys: their targets; that of the query is used to tell the error, and to find the best steps, only.
        layers: as many as that.
        step: η to show beside the best ones; left out, the best of one layer.
        points: T, examples in the context of tasks that are made.
        dimensions: d of tasks that are made.
        noise: standard deviation of their targets' noise.
        tasks: how many are made.
        seed: of the draw.

    Returns:
        by number of layers and method: η and γ; `error`, the squared error of the query over the mean square of the
            targets; and `difference`, the largest of a prediction between the layers of attention and the closed form
            of gradient descent, over the root mean square of the targets. Methods: the step given, the best step for
            so many layers, and the best η and γ for them (`corrected`).

    Raises:
        UserError: sizes, a step or a noise that cannot be used, only one of the arrays, or arrays that do not fit, are
            not finite, or whose queries all have a target of 0.

    Example:
        >>> found = gradient_step_attention(layers=2, points=10, dimensions=4, tasks=200).table
        >>> bool((found["difference"] < 1e-12).all()), found["error"].tail(2).round(2).tolist()  # best, corrected
        (True, [0.2, 0.09])

    Reference: arXiv 2212.07677; the closed forms are derived here.
    """
    _check(layers, points, dimensions, tasks, noise, step)
    x, y = _tasks(xs, ys, tasks, points, dimensions, noise, seed)
    given, targets = whole_context(x, y), y[:, -1:]
    scale = float(targets.square().mean())
    if not scale > 0:
        raise UserError("got a target of 0 for every query; expected targets that errors can be told against")
    eta = best_step(given, targets, 1).step if step is None else step
    shown, rows = tokens(x, y), []
    for k in range(layers + 1):
        for method, run in _runs(given, targets, max(k, 1), eta).items():
            closed = corrected_descent(given, k, *run)[-1]
            error = float((closed - targets).square().mean()) / scale
            rows.append((k, method, *run, error, _difference(shown, run, k, closed) / math.sqrt(scale)))
    table = pd.DataFrame(rows, columns=["layers", "method", "step", "shrink", "error", "difference"])
    units = {"layers": "layer"} | dict.fromkeys(("step", "shrink", "error", "difference"), "1")
    return Prediction(table, units, _notes(given, targets, scale, table), _picture(table))


def _runs(given: Contexts, targets: Tensor, layers: int, eta: float) -> dict[str, tuple[float, float]]:
    """Step and shrinkage of each method."""
    best, corrected = best_step(given, targets, layers), best_corrected(given, targets, layers)
    return {
        f"step {eta:.3g}": (eta, 0.0), "best step": (best.step, 0.0), "corrected": (corrected.step, corrected.shrink),
    }  # fmt: skip


def _check(layers: int, points: int, dimensions: int, tasks: int, noise: float, step: float | None) -> None:
    sizes = {"layers": layers, "points": points, "dimensions": dimensions, "tasks": tasks}
    for name, value in sizes.items():
        if not (isinstance(value, int) and value >= 1):
            raise UserError(f"got {name}={value}; expected a whole number from 1 on")
    if not 0 <= noise < math.inf or not (step is None or 0 < step < math.inf):
        raise UserError(f"got noise={noise}, step={step}; expected a noise from 0 on and a step above 0")


def _tasks(
    xs: np.ndarray | None, ys: np.ndarray | None, tasks: int, points: int, dimensions: int, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    if (xs is None) != (ys is None):
        raise UserError("got one of the arrays xs and ys; expected both, points and their targets, or neither")
    if xs is None or ys is None:
        return regression_tasks(tasks, points, dimensions, noise=noise, seed=seed)
    with in_one_line(ValueError):
        x, y = brought_tasks(xs, ys)
        whole_context(x, y)
    return x, y


def _difference(shown: Tensor, run: tuple[float, float], layers: int, closed: Tensor) -> float:
    """The largest difference of a prediction, layers of attention against the closed form."""
    layer = gradient_step_layer(shown.shape[-1] - 1, *run)
    for _ in range(layers):
        shown = linear_attention(shown, layer)
    return float((prediction(shown) - closed.squeeze(-1)).abs().max())


def _notes(given: Contexts, targets: Tensor, scale: float, table: pd.DataFrame) -> list[str]:
    least = float((least_squares(given) - targets).square().mean()) / scale
    notes = [f"least squares on the same contexts has an error of {least:.3g}"]
    if table["error"].max() > 1:
        notes.append("where an error is above 1 layers do more harm than good: the step is too large for many contexts")
    if len(targets) < 2:
        notes.append("one task: the best steps are those for this query, and say little of others")
    return notes


def _picture(table: pd.DataFrame) -> Picture:
    series = {
        str(method): [(float(k), float(e)) for k, e in zip(rows["layers"], rows["error"]) if 0 < e < math.inf]
        for method, rows in table.groupby("method", sort=False)
    }
    return Picture(series, across="layers of linear attention", up="error of the query (1)", log=True)
