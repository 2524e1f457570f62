"""Four laws of the loss: variance-limited slopes are 1, resolution-limited ones fall as one over the data's dimension.

Protocol: teacher and student are networks of one hidden layer of ReLU; the student trains its last layer only, to the
end, without noise. Inputs lie on spheres of several dimensions d in the same 16 coordinates. Resolution-limited: the
error of an infinitely wide student (its kernel) by the number of samples, and that of students of few units by their
number, on 16 times more samples than units or more. All sizes are above the number of harmonics of the first three
degrees (50 in four dimensions, 112 in six), for no power law begins before. Variance-limited, in three dimensions: the
error of 16 units by the number of samples, less that on the whole population; and that on 32 samples by the number of
units, a mean over draws, less that of one student with all draws' units. Judged is what the paper states: both
variance-limited slopes are 1 (0.85 to 1.15 pass); resolution-limited exponents go as 1/d, so that their logarithm falls
by one with that of d (0.6 to 1.4); and those of data and of units are alike (within a quarter, in the mean over d).

Control: the two-neighbour estimate finds the dimension of each sphere within a quarter, and resolution-limited errors
lie within a quarter of their power law.

Failure: with the controls met, a number outside its bounds. A first run, with sizes from 32 on in up to six dimensions,
failed: among the low harmonics four and six dimensions have one exponent, and the logarithm falls by 0.4. A second, at
these sizes, was undecided on the misfit of one noisy curve, which is now a mean over five parts of the data. For scale:
exponents times d, which the paper puts at 4 for smooth teachers and networks that are linear between samples; for this
kernel theory has 3 at large sizes (kinks of the third power of the distance). The paper has random features and image
classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import lstsq

from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.maths.activation import activation
from layerwright.maths.intrinsic_dimension import two_nn
from layerwright.maths.kernel import dense, inputs, nonlinear
from layerwright.maths.power_laws import PowerLaw, fit_power_law
from layerwright.report.lines import lines

COLUMNS, TEACHER, OUTPUTS, VARIANCE_DIMENSION, UNITS, SAMPLES = 16, 4096, 8, 3, 16, 32
_PARTS = 5
SIZES = {
    "small": {"dimensions": (1, 2, 3, 4), "sizes": (64, 128, 256, 512), "points": 8192, "draws": 24},
    "full": {"dimensions": (1, 2, 3, 4, 6), "sizes": (128, 256, 512, 1024, 2048), "points": 32768, "draws": 100},
}
EXPECTED = (
    Expectation("data_slope", "variance-limited exponent of data", low=0.85, high=1.15),
    Expectation("width_slope", "variance-limited exponent of width", low=0.85, high=1.15),
    Expectation("data_by_dimension", "slope of ln exponent by ln d, resolution-limited by data", low=-1.4, high=-0.6),
    Expectation("width_by_dimension", "slope of ln exponent by ln d, resolution-limited by width", low=-1.4, high=-0.6),
    Expectation("duality", "|ln| of the exponent of data over that of width, mean over d", high=0.25),
    Expectation("dimension_error", "largest |estimate / d − 1| of the two-neighbour estimate", high=0.25, control=True),
    Expectation("misfit", "largest relative distance of resolution-limited errors from their law", high=0.25,
                control=True),
    Expectation("data_times_d", "for scale: exponent of data times d, mean over d"),
    Expectation("width_times_d", "for scale: exponent of width times d, mean over d"),
)  # fmt: skip


@claim(paper="2102.06701", minutes=(1.5, 40), seeds=(4, 5))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    by_dimension = {
        name: np.exp(np.log([t[key] for t in trials]).mean(0)).tolist()
        for name, key in (("data", "data_exponents"), ("(width)", "width_exponents"))
    }
    dimensions: Sequence[int] = size["dimensions"]  # type: ignore[assignment]
    series = {name: list(zip(np.log10(dimensions), found)) for name, found in by_dimension.items()}
    series["(3/d)"] = [(math.log10(d), 3 / d) for d in dimensions]
    figure = lines(
        series, across="log₁₀ dimension", up="resolution-limited exponent (1)", log=True,
        label="Exponent of the error by data and by width against the dimension of the data",
    )  # fmt: skip
    conditions = size | {
        "student": f"one hidden layer of ReLU, the last layer trained; teacher of {TEACHER} units, {OUTPUTS} outputs",
        "exponents_by_data": np.round(by_dimension["data"], 3).tolist(),
        "exponents_by_width": np.round(by_dimension["(width)"], 3).tolist(),
    }
    return judge(
        "Variance-limited losses fall as 1/size, resolution-limited ones with an exponent of data and width alike "
        "that goes as one over the data's dimension.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


def _trial(seed: int, dimensions: Sequence[int], sizes: Sequence[int], points: int, draws: int) -> Trial:
    data, width, estimates = [], [], []
    for d in dimensions:
        rng = np.random.default_rng([seed, d])
        x, y = task(rng, points, d)
        data.append(fit_power_law(np.array(sizes), by_data(x, y, sizes), 0.0))
        width.append(fit_power_law(np.array(sizes), by_width(rng, x, y, sizes), 0.0))
        estimates.append(two_nn(x)[0] / d - 1)
    rng = np.random.default_rng([seed, 0])
    x, y = task(rng, points, VARIANCE_DIMENSION)
    of_data, of_width = data_variance(rng, x, y, draws), width_variance(rng, x, y, draws)
    logs = [np.log([law.exponent for law in laws]) for laws in (data, width)]
    slopes = [float(np.polyfit(np.log(dimensions), log, 1)[0]) for log in logs]
    times = [float((np.exp(log) * dimensions).mean()) for log in logs]
    return {
        "data_slope": of_data.exponent, "width_slope": of_width.exponent,
        "data_by_dimension": slopes[0], "width_by_dimension": slopes[1],
        "duality": float(np.abs(logs[0] - logs[1]).mean()),
        "dimension_error": float(np.abs(estimates).max()),
        "misfit": max(law.error for law in [*data, *width]),
        "data_times_d": times[0], "width_times_d": times[1],
        "data_exponents": np.exp(logs[0]), "width_exponents": np.exp(logs[1]),
    }  # fmt: skip


def task(rng: np.random.Generator, points: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of a sphere of that dimension, turned in `COLUMNS` coordinates, and a teacher's outputs, of variance 1."""
    x = rng.standard_normal((points, dimension + 1))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = x @ np.linalg.qr(rng.standard_normal((COLUMNS, dimension + 1)))[0].T
    y = features(rng, x, TEACHER) @ rng.standard_normal((TEACHER, OUTPUTS))
    y -= y.mean(0)
    return x, y / y.std()


def features(rng: np.random.Generator, x: np.ndarray, units: int) -> np.ndarray:
    """Random units; the mean of their products is `kernel`."""
    return np.asarray(np.maximum(x @ rng.standard_normal((COLUMNS, units)), 0) * math.sqrt(2 / units))


def kernel(x: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """What the products of features are with units without end."""
    state = inputs(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(x2)))
    return nonlinear(activation("relu"))(dense(2.0 * COLUMNS)(state)).nngp.numpy()


def by_data(x: np.ndarray, y: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Error of the kernel's regression on samples, on twice the most of them, a mean over five parts of the points."""
    most, errors = max(sizes), []
    for start in range(0, len(x) - 3 * most + 1, 3 * most)[:_PARTS]:
        points, targets = x[start : start + 3 * most], y[start : start + 3 * most]
        k = kernel(points, points[:most])
        found = (k[most:, :n] @ _solve(k[:n, :n], targets[:n]) for n in sizes)
        errors.append([((targets[most:] - f) ** 2).mean() for f in found])
    return np.mean(errors, axis=0)


def by_width(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Error of the best last layer of students of few units on all points, a mean over four draws of the units.

    The error is that on the points fitted on, without its share that as many parameters fit by chance.
    """
    draws = [[_residual(features(rng, x, p), y) for p in sizes] for _ in range(4)]
    return np.mean(draws, axis=0) / (1 - np.array(sizes) / len(x)) ** 2


def data_variance(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, draws: int) -> PowerLaw:
    """Law of the error of a fixed student by its samples, drawn from the points, above that of all points."""
    f, sizes = features(rng, x, UNITS), UNITS * 2 ** np.arange(4, 9)
    best = np.linalg.lstsq(f, y, rcond=None)[0]
    above = np.zeros(len(sizes))
    for _ in range(draws):
        for k, n in enumerate(sizes):
            taken = rng.integers(len(x), size=n)
            above[k] += ((f @ (np.linalg.lstsq(f[taken], y[taken], rcond=None)[0] - best)) ** 2).mean()
    return fit_power_law(sizes, above / draws, 0.0)


def width_variance(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, draws: int) -> PowerLaw:
    """Law of the error of students fitted to few samples by their units, above that of all draws' units in one student.

    That one has `draws` times the units: where the error above the kernel's goes as a power of the units, so does this
    difference, and what the units of a draw happen to favour is in both.
    """
    sizes = SAMPLES * 2 ** np.arange(4, 9)
    x, y = x[: SAMPLES + 250], y[: SAMPLES + 250]

    def error(k: np.ndarray) -> float:
        found = k[SAMPLES:] @ _solve(k[:SAMPLES], y[:SAMPLES])
        return float(((y[SAMPLES:] - found) ** 2).mean())

    above = []
    for p in sizes.tolist():
        units = (features(rng, x, p) for _ in range(draws))
        kernels = [f @ f[:SAMPLES].T for f in units]
        above.append(np.mean([error(k) for k in kernels]) - error(np.mean(kernels, axis=0)))
    return fit_power_law(sizes, np.array(above), 0.0)


def _solve(k: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.solve(k + 1e-10 * np.trace(k) / len(k) * np.eye(len(k)), y))


def _residual(f: np.ndarray, y: np.ndarray) -> float:
    return float(((y - f @ lstsq(f, y, lapack_driver="gelsy")[0]) ** 2).mean())
