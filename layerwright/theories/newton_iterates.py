"""How fast Newton's iteration solves a regression in context, counted in steps of gradient descent."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.in_context import Contexts, gradient_descent, least_squares, newton, weights_in_context
from layerwright.maths.regression_tasks import brought_tasks, regression_tasks

# Squared errors below this are rounding, and steps of gradient descent beyond that many are not counted.
_ROUNDING, _MOST = 1e-24, 2**40


@theory(paper="2310.17086")
def newton_iterates(
    xs: np.ndarray | None = None,
    ys: np.ndarray | None = None,
    *,
    iterations: int = 12,
    step: float | None = None,
    points: int = 20,
    dimensions: int = 5,
    ratio: float = 1.0,
    noise: float = 0.0,
    tasks: int = 200,
    seed: int = 0,
) -> Prediction:
    """Error of Newton's iteration and of gradient descent on regressions, and how many steps of one the other is worth.

    With S = XᵀX, eigenvalues λ of S and w⁺ = S⁺Xᵀy the least squares that both go to,

        M_0 = S / ‖S²‖_F,   M_{k+1} = M_k (2 I − S M_k):   w⁺ − w_k = (I − S²/‖S²‖_F)^(2^k) w⁺
        w ← w − η Xᵀ(Xw − y):   w⁺ − w_s = (I − η S)^s w⁺

    Each iteration squares what is left, so that in the end it is worth as many steps as all before it together:
    `added_steps` doubles. In the direction of the least λ nothing happens before 2^k is as large as ‖S²‖_F / λ², the
    square of the condition number, where gradient descent takes as many steps as the condition number itself: where
    points are ill-conditioned, Newton's first iterations bring little.

    Assumes:
        linear regression of one output by examples that both algorithms see as a whole; exact arithmetic. Layers of a
        trained transformer are held against these iterates by `algorithm_match` and the claim `in_context_iterations`.

    Args:
        xs: points of a task, `[points, d]`, or of N tasks, `[N, points, d]`. Left out: tasks are made.
        ys: their targets.
        iterations: of Newton's, and steps of gradient descent, to show.
        step: η; left out, 2/(λ_max + λ_min) of each context, with which the slowest direction is the fastest.
        points: of tasks that are made, y = wᵀx + ε with w and x Gaussian.
        dimensions: d of tasks that are made.
        ratio: condition number of the covariance of their points; half of the variances are larger by it.
        noise: standard deviation of ε.
        tasks: how many are made.
        seed: of the draw.

    Returns:
        by number k: the median over tasks of ‖w_k − w⁺‖² / ‖w⁺‖² of Newton's iteration and of gradient descent after as
            many steps; `descent_steps`, the least steps of gradient descent with an error no larger than Newton's; and
            `added_steps`, how many of these the last iteration was worth. NaN where the error is rounding, or the steps
            are beyond 2^40.

    Raises:
        UserError: sizes, a step, a ratio or a noise that cannot be used, only one of the arrays, or arrays that do not
            fit, are not finite, or whose targets all are 0.

    Example:
        >>> newton_iterates(points=12, dimensions=3, iterations=10).table["added_steps"][5:9].tolist()
        [2.0, 4.0, 9.0, 16.0]

    Reference: arXiv 2310.17086.
    """
    _check(iterations, points, dimensions, tasks, ratio, noise, step)
    given = _tasks(xs, ys, tasks, points, dimensions, ratio, noise, seed)
    goal = least_squares(given)
    if not (goal.square().sum(-1) > 0).all():
        raise UserError("got a task whose least squares are all 0; expected targets that go with the points")
    rate = _rate(given, step)
    by_newton = [_error(w, goal) for w in newton(given, iterations)]
    by_descent = [_error(w, goal) for w in gradient_descent(given, range(iterations + 1), rate)]
    steps = [_steps(given, goal, rate, error) for error in by_newton]
    table = pd.DataFrame({
        "iterations": range(iterations + 1), "newton_error": by_newton, "descent_error": by_descent,
        "descent_steps": steps, "added_steps": np.diff(steps, prepend=math.nan),
    })  # fmt: skip
    units = {"newton_error": "1", "descent_error": "1", "descent_steps": "step", "added_steps": "step"}
    return Prediction(table, units, _notes(given, step), _picture(table))


def _check(
    iterations: int, points: int, dimensions: int, tasks: int, ratio: float, noise: float, step: float | None
) -> None:
    sizes = {"iterations": (iterations, 1), "points": (points, 2), "dimensions": (dimensions, 1), "tasks": (tasks, 1)}
    for name, (value, least) in sizes.items():
        if not (isinstance(value, int) and value >= least):
            raise UserError(f"got {name}={value}; expected a whole number from {least} on")
    if not (1 <= ratio < math.inf and 0 <= noise < math.inf and (step is None or 0 < step < math.inf)):
        raise UserError(
            f"got ratio={ratio}, noise={noise}, step={step}; expected a ratio from 1 on, a noise from 0 on and a step "
            "above 0"
        )


def _tasks(
    xs: np.ndarray | None, ys: np.ndarray | None, tasks: int, points: int, dimensions: int, ratio: float, noise: float,
    seed: int,
) -> Contexts:  # fmt: skip
    if (xs is None) != (ys is None):
        raise UserError("got one of the arrays xs and ys; expected both, points and their targets, or neither")
    with in_one_line(ValueError):
        if xs is not None and ys is not None:
            return weights_in_context(*brought_tasks(xs, ys))
        return weights_in_context(*regression_tasks(tasks, points - 1, dimensions, noise=noise, ratio=ratio, seed=seed))


def _rate(given: Contexts, step: float | None) -> Tensor:
    """η of each context, `[N, 1]`."""
    values = given.values[:, :1]
    if step is not None:
        top = float(values.max())
        if step * top > 2:
            raise UserError(
                f"got step={step:g} where S has an eigenvalue of {top:g}; expected one below {2 / top:.3g}, or none "
                "for the best of each context"
            )
        return torch.full_like(values[..., 0], step)
    least = torch.where(values > 0, values, torch.inf).amin(-1)
    return 2 / (values.amax(-1) + least)


def _error(weights: Tensor, goal: Tensor) -> float:
    """The median falls with every iteration and every step, as that of each task does."""
    return float(((weights - goal).square().sum(-1) / goal.square().sum(-1)).median())


def _steps(given: Contexts, goal: Tensor, rate: Tensor, error: float) -> float:
    """The least steps of gradient descent with an error no larger, by halving."""
    if not error > _ROUNDING:
        return math.nan

    def enough(steps: int) -> bool:
        return _error(gradient_descent(given, [steps], rate)[0], goal) <= error

    low, high = -1, 1
    while not enough(high):
        if high >= _MOST:
            return math.nan
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)


def _notes(given: Contexts, step: float | None) -> list[str]:
    values = given.values[:, 0]
    reached = values.amax(-1) / torch.where(values > 0, values, torch.inf).amin(-1)
    notes = [f"the condition number of S is {float(reached.median()):.4g} in the median task"]
    if (values == 0).any():
        notes.append("S is singular in some tasks, with fewer points than dimensions: both go to the smallest weights")
    if step is None:
        notes.append("each context has its own step of gradient descent, the best for its slowest direction")
    return notes


def _picture(table: pd.DataFrame) -> Picture:
    series = {
        name: [(float(k), float(e)) for k, e in zip(table["iterations"], table[column]) if e > _ROUNDING]
        for column, name in {"newton_error": "Newton", "descent_error": "gradient descent"}.items()
    }
    return Picture(series, across="iterations", up="error of the weights (1)", log=True)
