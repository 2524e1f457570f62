"""What an ensemble of infinitely wide networks puts out while it is trained, and its posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths import kernel_dynamics as dynamics
from layerwright.maths.kernel_dynamics import Gaussian, Progress, Query, Training, squared_error
from layerwright.theories.towers import Tower
from layerwright.theories.wide_data import check_sizes, inputs_of, made, refuse_zeros, remarks, targets_of, tower_of

_MADE_QUERIES = 5
_POINTS = 40
Row = tuple[str, float, str, float, float]


@theory(paper="1806.07572")
def wide_training(
    inputs: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    queries: np.ndarray | None = None,
    query_targets: np.ndarray | None = None,
    *,
    activation: str | Callable[..., torch.Tensor] = "relu",
    depth: int = 3,
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
    residual: float | None = None,
    filter_size: int = 3,
    readout: str = "pool",
    times: Sequence[float] = (),
    learning_rate: float | None = None,
    momentum: float = 0.0,
    noise: float = 0.0,
    samples: int = 100,
    dimension: int = 10,
) -> Prediction:
    """Outputs and errors of an ensemble of infinitely wide networks at any time of training, with their spread.

    With K the covariance of an output over initialisations, T the tangent kernel, X the samples, and training by
    gradient flow on Σ (f − y)² / 2N,

        f_t(x) = f_0(x) + T(x, X) T⁻¹ (1 − e^{−Tt/N}) (y − f_0(X)),   f_0 ~ N(0, K)

    so that outputs are Gaussian over initialisations at every time; the error of one network has the mean and the
    deviation of a square of those. Beside it the posterior, regression by the Gaussian process of covariance K.

    Assumes:
        width to infinity at a fixed depth, NTK parametrisation (weights N(0, 1) times √(C_W / inputs), biases times
        √C_b), outputs independent of one another, the squared error, full batches, no weight decay.

    Args:
        inputs: rows of numbers, `[N, d]`, or images, `[N, C, H, W]`, as the network reads them; left out, points drawn
            on a sphere of radius √d, with targets and queries.
        targets: `[N]` or `[N, C]`, numbers, as they are.
        queries: new inputs, `[M, …]`, at which outputs are predicted.
        query_targets: `[M]` or `[M, C]`, for the error on the queries.
        activation: a name as in `maths/activation.py` (relu, tanh, gelu, silu, …), or in Python any elementwise
            function with a slope.
        depth: hidden layers (dense, or convolutions on images), or residual blocks after a first one.
        weight_variance: C_W of every layer but the last, which has 1.
        bias_variance: C_b of the same layers.
        residual: r of blocks x + r W φ(x); left out, layers without residual branches.
        filter_size: s of the convolutions that read images, s × s pixels, with zeros around the image.
        readout: of images, before the last layer: the mean over all positions (`pool`), or all of them (`flatten`).
        times: t, learning rates times steps, from 0 on, `.inf` for the end; left out, 1, 10 and 100 over λ_max of T/N,
            and the end.
        learning_rate: η of gradient descent in whole steps, as near to each time as can be; left out, gradient flow.
        momentum: μ of gradient descent, from 0 to below 1.
        noise: σ², the variance of the targets' noise that the posterior takes them to have.
        samples: N, where the inputs are made.
        dimension: d, where the inputs are made.

    Returns:
        for each time and for the posterior, mean and standard deviation over the ensemble of the error on the samples
        and on the queries, summed over outputs, and of each output at each query; the picture is the error by time,
        with the band of one standard deviation.

    Raises:
        UserError: arrays or options cannot be used, the activation has no tangent kernel, the kernel is 0, or gradient
            descent diverges.

    Example:
        >>> table = wide_training(np.eye(2), np.ones(2), np.ones((1, 2)), depth=1, times=[0, math.inf]).table
        >>> table[table.quantity == "query 0"][["by", "time", "mean", "deviation"]].round(3).values.tolist()
        [['gradient flow', 0.0, 0.0, 1.0], ['gradient flow', inf, 1.569, 0.368], ['posterior', nan, 1.621, 0.366]]

    Reference: arXiv 1806.07572.
    """
    check_sizes(depth, samples, dimension)
    times = [times] if isinstance(times, (int, float)) else times
    _check(times, learning_rate, momentum, noise)
    task = _task(inputs, targets, queries, query_targets, samples, dimension)
    words = activation, depth, weight_variance, bias_variance, residual, filter_size, readout
    found = _found(task, tower_of(task.rows, *words))
    values, by = found.training.values, "gradient flow" if learning_rate is None else "gradient descent"
    top = dynamics.largest_rate(values, momentum)
    if learning_rate is not None and not 0 < learning_rate < top:
        raise UserError(
            f"got learning_rate={learning_rate:g}; expected one above 0 and below {top:.4g}, from which on it diverges"
        )
    rows: list[Row] = []
    for t in [float(t) for t in times] or [*(np.array([1, 10, 100]) / values.max()).tolist(), math.inf]:
        state = _progress(values, t, learning_rate, momentum)
        new = dynamics.outputs(found.training, state, found.points)
        rows += _rows(by, t, dynamics.errors_left(found.training, state), new, task.answers)
    rest, jitter = _posterior(found, task, noise)
    table = pd.DataFrame(rows + rest, columns=["by", "time", "quantity", "mean", "deviation"])
    notes = [*remarks(task.rows[: len(task.targets)]), *_notes(values, jitter, top)]
    if inputs is None:
        notes.append("inputs, targets and queries are made")
    picture = _picture(found, task.answers, learning_rate, momentum)
    return Prediction(table, {"time": "learning rate · step"}, notes, picture)


class _Task(NamedTuple):
    """Inputs of the samples and, behind them, of the queries; targets of the one, and of the other where there are."""

    rows: np.ndarray
    targets: np.ndarray
    answers: np.ndarray | None


class _Found(NamedTuple):
    """The task and its queries in the modes of T, and the covariance K of all rows."""

    training: Training
    points: Query
    nngp: np.ndarray


def _check(times: Sequence[float], rate: float | None, momentum: float, noise: float) -> None:
    if not all(t >= 0 for t in times):
        raise UserError(f"got times={list(times)}; expected numbers from 0 on, as in --set times=[1,10,.inf]")
    if not (0 <= momentum < 1 and 0 <= noise < math.inf):
        raise UserError(f"got momentum={momentum}, noise={noise}; expected one from 0 to below 1, and one from 0 on")
    if momentum and rate is None:
        raise UserError(f"got momentum={momentum} for gradient flow, which has none; give learning_rate as well")


def _task(
    inputs: object | None, targets: object | None, queries: object | None, answers: object | None, samples: int,
    dimension: int,
) -> _Task:  # fmt: skip
    """The arrays given, or made ones."""
    if inputs is None and targets is None and queries is None and answers is None:
        x, y = made(samples, dimension, _MADE_QUERIES)
        return _Task(x, y[:samples], y[samples:])
    if inputs is None or targets is None:
        raise UserError("got arrays without inputs or without targets; expected both, or no arrays at all")
    x = inputs_of(inputs, "inputs")
    y = targets_of(targets, "targets", len(x))
    if queries is None:
        if answers is not None:
            raise UserError("got query_targets without queries; expected both, or leave them out")
        return _Task(x, y, None)
    asked = inputs_of(queries, "queries")
    known = None if answers is None else targets_of(answers, "query_targets", len(asked))
    for name, new, old in (("queries", asked, x), ("query_targets", known, y)):
        if new is not None and new.shape[1:] != old.shape[1:]:
            raise UserError(f"got {name} of {_size(new)}; expected {_size(old)}, as for the samples")
    return _Task(np.concatenate([x, asked]), y, known)


def _size(x: np.ndarray) -> str:
    return f"{x.shape[1]} columns" if x.ndim == 2 else " × ".join(map(str, x.shape[1:])) + " pixels"


def _found(task: _Task, network: Tower) -> _Found:
    kernels, n = network.kernel(torch.from_numpy(task.rows)), len(task.targets)
    nngp, ntk = kernels.nngp.numpy(), kernels.ntk.numpy()
    refuse_zeros(float(nngp[:n, :n].max()))
    training = dynamics.decompose(nngp[:n, :n], ntk[:n, :n], task.targets)
    return _Found(training, dynamics.query(training, nngp[n:, :n], ntk[n:, :n], nngp[n:, n:]), nngp)


def _progress(values: np.ndarray, time: float, rate: float | None, momentum: float) -> Progress:
    if rate is None or math.isinf(time):  # descent that converges ends where the flow does
        return dynamics.flow(values, time)
    return dynamics.descent(values, rate, round(time / rate), momentum)


def _rows(by: str, time: float, errors: Gaussian, new: Gaussian, answers: np.ndarray | None) -> list[Row]:
    """The table's rows at one time, from the errors on the samples and the outputs at the queries."""
    rows: list[Row] = [(by, time, "training error", *squared_error(errors))]
    if answers is not None:
        rows.append((by, time, "query error", *squared_error(_less(new, answers))))
    one, deviation = new.mean.shape[1] == 1, np.sqrt(new.covariance.diagonal().clip(0.0))
    return rows + [
        (by, time, f"query {k}" if one else f"query {k}, output {c}", float(mean), float(deviation[k]))
        for k, row in enumerate(new.mean)
        for c, mean in enumerate(row)
    ]


def _less(found: Gaussian, targets: np.ndarray) -> Gaussian:
    return Gaussian(found.mean - targets, found.covariance)


def _posterior(found: _Found, task: _Task, noise: float) -> tuple[list[Row], float]:
    """The table's rows on the posterior, and the jitter that it took."""
    n = len(task.targets)
    (mean, covariance), jitter = dynamics.posterior(
        found.nngp[:n, :n], task.targets, found.nngp[:, :n], found.nngp, noise
    )
    old, new = Gaussian(mean[:n], covariance[:n, :n]), Gaussian(mean[n:], covariance[n:, n:])
    return _rows("posterior", math.nan, _less(old, task.targets), new, task.answers), jitter


def _notes(values: np.ndarray, jitter: float, top: float) -> list[str]:
    notes = []
    if lost := int((values == 0).sum()):
        notes.append(f"T is singular: {lost} of {len(values)} modes are never learned")
    if jitter:
        notes.append(f"K is singular: {jitter:.3g} is added to its diagonal for the posterior")
    return [*notes, f"gradient descent converges for learning rates below {top:.4g}"]


def _picture(found: _Found, answers: np.ndarray | None, rate: float | None, momentum: float) -> Picture:
    values = found.training.values
    grid = np.geomspace(0.1, 1e4, _POINTS) / values.max()
    states = [_progress(values, t, rate, momentum) for t in grid]
    curves = {"samples": [squared_error(dynamics.errors_left(found.training, state)) for state in states]}
    if answers is not None:
        new = [dynamics.outputs(found.training, state, found.points) for state in states]
        curves["queries"] = [squared_error(_less(gaussian, answers)) for gaussian in new]
    series = {
        name: [(t, mean, max(mean - spread, 0.0), mean + spread) for t, (mean, spread) in zip(grid.tolist(), curve)]
        for name, curve in curves.items()
    }
    return Picture(series, across="learning rate times steps", up="squared error ± deviation (1)", log_across=True)
