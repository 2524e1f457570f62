"""Which of four laws a loss follows as data or width grow, and which exponents data promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.intrinsic_dimension import two_nn
from layerwright.maths.power_laws import PowerLaw, fit_power_law, tail_exponent
from layerwright.maths.random_features import risk
from layerwright.theories.towers import Act, Dense, tower

# Fits come this near to an exponent that holds in a limit only.
_SLACK = 0.1
# Points that a power law with a floor is fitted to.
_POINTS = 4
# Rows from which ranks of eigenvalues reach from N/50 to N/5.
_ROWS = 100
_SHOWN = 4
_COLUMNS = ("quantity", "value", "low", "high", "unit", "meaning")
Row = tuple[str, float, float, float, str, str]


@theory(paper="2102.06701")
def scaling_regimes(
    data: np.ndarray | None = None,
    widths: np.ndarray | None = None,
    losses: np.ndarray | None = None,
    inputs: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    *,
    dimension: float | None = None,
    activation: str | Callable[..., torch.Tensor] = "relu",
    depth: int = 2,
    decay: float = 0.5,
) -> Prediction:
    """Which of four laws a loss follows as data or width grow: variance- or resolution-limited, with exponents.

    Where data D, or features P, are few beside the other, they limit the resolution; where they are many, only the
    variance that they cause is left, and the loss goes to that of the other's limit:

        few:  L ∝ D^−a or P^−a, 1/d ≤ a ≤ 4/d       many:  L − L_∞ ∝ D^−1 or P^−1

    with d the dimension of the data: 1/d for a rough target, 2/d for a smooth one taken constant, and 4/d taken linear
    between samples. With a wide network's kernel of eigenvalues i^−(1 + α) and a target of squares i^−(1 + r) along its
    eigenvectors, a = min(r, 2 + 2α) in data and min(r, 1 + α) in features: both are α for a target like the kernel.

    Assumes:
        losses of training to its end, at otherwise fixed settings, each cut within one regime; squared errors without
        noise for the exponents of the kernel, which are those of large ranks.

    Args:
        data: samples of each loss, `[n]`; left out, the same for all.
        widths: of each loss, `[n]`: features, or units of the layers; left out, the same for all.
        losses: above 0, `[n]`; every four sizes or more that share the other size are a cut. If nothing is given, made
            by the theory of random features.
        inputs: rows, `[N, columns]`, for their dimension and the kernel's α.
        targets: `[N]` or `[N, C]`, numbers, for r.
        dimension: d; left out, that of the inputs, where given.
        activation: of the wide network (tangent kernel, weights of variance 2).
        depth: its hidden layers.
        decay: α of the losses that are made.

    Returns:
        by cut: the exponent, its 95 % interval, and the regime; by inputs: d, α, r and the exponents to expect.

    Raises:
        UserError: arrays that do not fit, too few points or rows, losses that do not fall, or targets alone.

    Example:
        >>> n = np.array([10, 20, 40, 80, 160, 320])
        >>> found = scaling_regimes(data=n, losses=0.3 + 2 / n).table
        >>> found["quantity"][0], round(float(found["value"][0]), 3), found["meaning"][0].split(":")[0]
        ('data_exponent', 1.0, 'variance-limited')

    Reference: arXiv 2102.06701; the range of a is derived here from the distance D^−1/d of neighbours, and what r does
    beside α from `maths/random_features.py`.
    """
    if dimension is not None and not 0 < dimension < math.inf:
        raise UserError(f"got dimension={dimension}; expected a number above 0")
    notes: list[str] = []
    rows: list[Row] = []
    if inputs is not None:
        found, own = _of_inputs(inputs, targets, _kernel(activation, depth), notes)
        rows += found
        dimension = dimension or own
    elif targets is not None:
        raise UserError("got targets without inputs; expected both, or neither")
    if losses is None and (data is not None or widths is not None):
        raise UserError("got sizes without losses; expected one loss for each size")
    if losses is None and inputs is None:
        data, widths, losses = _made(decay)
        notes.append("losses are made, by the theory of random features")
    cuts = [] if losses is None else _cuts(data, widths, losses)
    rows = [_row(cut, dimension, notes) for cut in cuts] + rows
    if dimension:
        rows += [
            (f"exponent_{name}_over_d", k / dimension, math.nan, math.nan, "1", meaning)
            for name, k, meaning in (
                ("two", 2, "resolution-limited, of a smooth target taken constant between samples"),
                ("four", 4, "resolution-limited, taken linear between samples"),
            )
        ]
    return Prediction(pd.DataFrame(rows, columns=list(_COLUMNS)), notes=notes, picture=_picture(cuts))


def regime(low: float, high: float, dimension: float | None = None) -> str:
    """Which limit an exponent with that interval speaks for.

    Args:
        low: lower end of its interval.
        high: upper end.
        dimension: of the data, where it is known: then a resolution-limited exponent is one from 1/d to 4/d.

    Example:
        >>> regime(0.96, 1.02), regime(0.3, 0.4), regime(0.2, 1.5), regime(1.8, 2.1), regime(1.8, 2.1, dimension=2)
        ('variance-limited', 'resolution-limited', 'undecided', 'neither', 'resolution-limited')
    """

    def reaches(first: float, last: float) -> bool:
        return low <= (1 + _SLACK) * last and high >= (1 - _SLACK) * first

    variance = reaches(1, 1)
    if dimension is None:  # a wide interval around 1 tells nothing
        resolution = low < 1 - _SLACK and (not variance or high > 2 * low)
    else:
        resolution = reaches(1 / dimension, 4 / dimension)
    if variance and resolution:
        return "undecided"
    return "variance-limited" if variance else "resolution-limited" if resolution else "neither"


class _Cut(NamedTuple):
    """Losses along one size at one value of the other."""

    name: str
    along: str
    x: np.ndarray
    y: np.ndarray
    law: PowerLaw


def _cuts(data: Any, widths: Any, losses: Any) -> list[_Cut]:
    y = _numbers(losses, "losses", None)
    sizes = {"data": data, "width": widths}
    given = {name: _numbers(size, name, len(y)) for name, size in sizes.items() if size is not None}
    if not given:
        raise UserError("got losses without sizes; expected data, widths or both, one for each loss")
    found = []
    for along, x in given.items():
        other = next((name for name in given if name != along), None)
        held = np.zeros(len(y)) if other is None else given[other]
        for at in np.unique(held):
            here = (held == at) & np.isfinite(x)
            if len(np.unique(x[here])) < _POINTS:
                continue
            try:
                law = fit_power_law(x[here], y[here])
            except ValueError as error:
                raise UserError(f"{along} exponent{'' if other is None else f' at {other} {at:g}'}: {error}") from None
            name = f"{along}_exponent" if other is None else f"{along}_exponent_at_{other}_{at:g}"
            found.append(_Cut(name, along, x[here], y[here], law))
    if not found:
        raise UserError(f"got {len(y)} losses; expected at least {_POINTS} sizes that share the other size")
    return found


def _numbers(given: Any, name: str, length: int | None) -> np.ndarray:
    found = np.asarray(given)
    if found.ndim != 1 or found.dtype.kind not in "iuf" or length not in (None, len(found)):
        expected = "a row of numbers" if length is None else f"{length} numbers, one for each loss"
        raise UserError(f"got {name} of type {found.dtype} and shape {found.shape}; expected {expected}")
    if np.isnan(found).any() or (found <= 0).any() or (length is None and np.isinf(found).any()):
        raise UserError(f"got {name} that are NaN, infinite or not above 0; leave those points out")
    return found.astype(float)


def _row(cut: _Cut, dimension: float | None, notes: list[str]) -> Row:
    law = cut.law
    kind = regime(law.low, law.high, dimension)
    if law.error > 0.1:
        notes.append(f"{cut.name}: points lie {law.error:.0%} off their law; they may reach from one regime to another")
    floor = law.floor if law.floor > 1e-6 * cut.y.min() else 0.0
    meaning = f"{kind}: L − {floor:.4g} falls as {cut.along}^−{law.exponent:.2f}, {len(cut.x)} points"
    return cut.name, law.exponent, law.low, law.high, "1", meaning


def _of_inputs(inputs: Any, targets: Any, kernel: Callable[..., Any], notes: list[str]) -> tuple[list[Row], float]:
    """Rows on the inputs and their kernel, and the dimension."""
    x = np.asarray(inputs)
    try:
        dimension, error = two_nn(x)
    except ValueError as problem:
        raise UserError(f"inputs: {problem}") from None
    x, first = np.unique(x, axis=0, return_index=True)
    n, half = len(x), 1.96 * error
    if n < _ROWS:
        raise UserError(f"got {n} different inputs; expected at least {_ROWS} for the kernel's eigenvalues")
    if n < len(np.asarray(inputs)):
        notes.append(f"inputs that stand there more than once count once: {n} of {len(np.asarray(inputs))} are left")
    values, vectors = np.linalg.eigh(kernel(torch.from_numpy(x)).ntk.numpy() / n)
    ranks = n // 50, n // 5
    alpha = _decay(values[::-1].clip(0.0), ranks, "eigenvalues")
    where = f"over ranks {ranks[0]} to {ranks[1]} of {n}"
    rows: list[Row] = [
        ("intrinsic_dimension", dimension, dimension - half, dimension + half, "1", "of the inputs, by two neighbours"),
        ("kernel_exponent", alpha, math.nan, math.nan, "1", f"α: eigenvalues fall as rank^−(1 + α) {where}"),
    ]
    if targets is None:
        data, width, of = alpha, alpha, "a target like the kernel"
    else:
        y = _targets(targets, len(np.asarray(inputs)))[first]
        r = _decay(((vectors[:, ::-1].T @ (y - y.mean(0))) ** 2).sum(1), ranks, "the target's squares")
        rows.append(("target_exponent", r, math.nan, math.nan, "1", f"r: its squares fall as rank^−(1 + r) {where}"))
        data, width, of = min(r, 2 + 2 * alpha), min(r, 1 + alpha), "this target"
    for name, exponent in (("data", data), ("width", width)):
        meaning = f"resolution-limited, of {of} and the kernel of an infinitely wide network"
        rows.append((f"expected_{name}_exponent", exponent, math.nan, math.nan, "1", meaning))
    return rows, dimension


def _decay(values: np.ndarray, ranks: tuple[int, int], what: str) -> float:
    try:
        return tail_exponent(values, *ranks)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def _kernel(activation: str | Callable[..., torch.Tensor], depth: int) -> Callable[..., Any]:
    if not (isinstance(depth, int) and depth >= 1):
        raise UserError(f"got depth={depth}; expected a whole number from 1 on")
    return tower([*(word for _ in range(depth) for word in (Dense(2.0), Act(activation))), Dense()]).kernel


def _targets(given: Any, n: int) -> np.ndarray:
    y = np.asarray(given)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != n or y.dtype.kind not in "biuf" or not np.isfinite(y).all():
        raise UserError(f"got targets of shape {y.shape} for {n} inputs; expected finite numbers, a row for each input")
    if (y == y[0]).all():
        raise UserError("got targets that are the same for all inputs; expected some that vary, or leave them out")
    return y.astype(float)


def _made(decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses without noise or ridge in each of the four limits."""
    if not 0 < decay < math.inf:
        raise UserError(f"got decay={decay}; expected a number above 0")
    values = np.arange(1, 20001.0) ** -(1 + decay)
    few, many = np.geomspace(16, 128, 6).round(), np.geomspace(256, 2048, 6).round()
    points = [(x, 1e6) for x in few] + [(x, 16.0) for x in many]
    points += [(k, n) for n, k in points]
    losses = [risk(values, values / values.sum(), n, k, 1e-10).test for n, k in points]
    return np.array([n for n, _ in points]), np.array([k for _, k in points]), np.array(losses)


def _picture(cuts: list[_Cut]) -> Picture | None:
    """What is above each cut's floor, which is a straight line."""
    series = {}
    for cut in sorted(cuts, key=lambda cut: -len(cut.x))[:_SHOWN]:
        name = cut.name.replace("_exponent", "").replace("_at", " at").replace("_", " ")
        above = [(float(x), y - cut.law.floor) for x, y in sorted(zip(cut.x, cut.y)) if y > cut.law.floor]
        # Where data and width limit alike the lines are one: dashes show both.
        if above:
            series[name if cut.along == "data" else f"({name})"] = above
    return Picture(series, across="size", up="loss above its limit (1)", log=True, log_across=True) if series else None
