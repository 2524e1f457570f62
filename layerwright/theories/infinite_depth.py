"""What a classifier of some activation becomes when it is infinitely wide and then infinitely deep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.activation import Activation
from layerwright.maths.activation import activation as activation_of
from layerwright.maths.deep_kernels import deep_kernels
from layerwright.maths.infinite_depth import CONSTANT, SINGULAR, SLOW, Limit, limit
from layerwright.maths.intrinsic_dimension import two_nn
from layerwright.maths.kernel_classifier import distances, hilbert_scores, regress
from layerwright.maths.optimal_activation import optimal
from layerwright.theories.sphere_data import SphereData, sphere_data

_DEEPEST = 100_000
_SHOWN = 40.0
_LONG = {
    "K": "the kernel K, last layer trained", "T": "the tangent kernel T, all layers trained",
    "nearest": "the nearest neighbour", "majority": "majority vote", "Hilbert": "the Hilbert estimate",
}  # fmt: skip
Row = tuple[str, float | str, str, str]


@theory(paper="2204.14126")
def infinite_depth(
    inputs: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    queries: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
    *,
    activation: str | Callable[..., torch.Tensor] = "relu",
    depth: int = 1000,
    dimension: float | None = None,
    variance: float = 1.0,
) -> Prediction:
    """Nearest neighbour, majority vote or a singular kernel: what depth makes of an infinitely wide classifier.

    A layer maps the correlation ρ of two inputs to κ(ρ), the dual activation over its value at 1. By A = κ(0),
    A′ = κ′(0) and B′ = κ′(1) infinitely many layers are, for inputs whose products are not negative,

        A = A′ = 0: nearest neighbour;   A > 0, B′ ≥ 1: majority vote;   A > 0, B′ < 1: a smooth kernel and a constant
        A = 0 < A′ < 1: argmax Σ y_i (1 − ρ_i)^−α,   α = −ln A′ / ln B′,   consistent where 2α is the data's dimension

    With inputs and labels, queries are classified by both kernels at this depth: K, where only the last layer is
    trained, and T, where all are. T is the steeper, up to (1 − ρ)^−(α+1), until the depth times (1 − ρ) is large.

    Assumes:
        infinite width first, then depth; inputs of one norm (they are scaled to it) with no negative products; the
        variance of the units held where it is (C_W = q / E φ², no biases); the squared error, fitted exactly.

    Args:
        inputs: rows of numbers, `[N, columns]`; left out, the class of the activation only.
        labels: classes of the inputs, `[N]`, whole numbers as 0, 1, 2 or −1, 1.
        queries: rows to classify, `[M, columns]`; left out, every third input is held out.
        query_labels: their classes, `[M]`, for accuracies.
        activation: a name as in `maths/activation.py` (relu, erf, hermite:2, …), "optimal" for the paper's activation
            for data of this dimension, or in Python any elementwise function.
        depth: layers with an activation, up to 100,000.
        dimension: intrinsic dimension of the data, for "optimal" and the Hilbert estimate; left out, it is estimated
            from the inputs by their two nearest neighbours.
        variance: q, of the units.

    Returns:
        A, A′, B′, the class and α; with data the accuracies of both kernels, of nearest neighbour, of majority vote and
        of the Hilbert estimate, and how often they agree. The picture is accuracy by depth (agreement with the nearest
        neighbour where queries have no labels), or without data the kernel by distance.

    Raises:
        UserError: an unknown activation, arrays that do not fit or have negative products or zero vectors, more samples
            than fit into memory, or options that cannot be used.

    Example:
        >>> found = infinite_depth(activation="optimal", dimension=4)
        >>> found.notes, round(found["exponent"], 6)
        (['class: singular kernel'], 2.0)

    Reference: arXiv 2204.14126.
    """
    _check(depth, dimension, variance)
    data = sphere_data(inputs, labels, queries, query_labels)
    about = [] if data is None else list(data.notes)
    if data is not None and dimension is None:
        dimension = _estimated(data, about)
    phi = _activation(activation, dimension, variance)
    found = _limit(phi, variance)
    notes = _notes(phi, found, data) + about
    rows = _rows(found, dimension)
    if data is None:
        return Prediction(quantities(rows), notes=notes, picture=_by_distance(phi, found, depth, variance))
    answers = _Answers(data, dimension)
    by_depth = dict(_classified(phi, data, depth, variance, notes))
    rows += answers.rows(by_depth[depth])
    return Prediction(quantities(rows), notes=notes, picture=answers.picture(by_depth))


def _check(depth: int, dimension: float | None, variance: float) -> None:
    if not (isinstance(depth, int) and 1 <= depth <= _DEEPEST):
        raise UserError(f"got depth={depth}; expected a whole number from 1 to {_DEEPEST}")
    if not (0 < variance < math.inf and (dimension is None or 0.5 <= dimension < math.inf)):
        raise UserError(
            f"got variance={variance}, dimension={dimension}; expected a variance above 0, a dimension from 0.5 on"
        )


def _activation(given: str | Callable[..., torch.Tensor], dimension: float | None, variance: float) -> Activation:
    if isinstance(given, str) and given == "optimal":
        if dimension is None:
            raise UserError("got activation=optimal; expected a dimension with it, as in dimension=2")
        if variance != 1:
            raise UserError(
                f"got activation=optimal with variance={variance}; expected variance=1, which it is made for"
            )
        given = optimal(dimension)
    with in_one_line(ValueError):
        return activation_of(given)


def _limit(phi: Activation, variance: float) -> Limit:
    with in_one_line(ValueError):
        return limit(phi, variance)


def _rows(found: Limit, dimension: float | None) -> list[Row]:
    rows: list[Row] = [
        ("dual_at_zero", found.at_zero, "1", "A = κ(0)"),
        ("slope_at_zero", found.slope_at_zero, "1", "A′ = κ′(0)"),
        ("slope_at_one", found.slope_at_one, "1", "B′ = κ′(1)"),
        ("exponent", found.exponent, "1", "α of the singular kernel (1 − ρ)^−α"),
        ("consistent_dimension", 2 * found.exponent, "1", "2α, of data for which it is consistent"),
    ]
    if dimension is not None:
        rows.append(("dimension", dimension, "1", "of the data, as given or estimated"))
    return rows


def _notes(phi: Activation, found: Limit, data: SphereData | None) -> list[str]:
    notes = [f"class: {found.name}"]
    if found.name == CONSTANT:
        notes.append(
            "not majority vote: with A > 0 and B′ < 1 all inputs run together, and what is left is regression with a "
            "smooth kernel and a constant"
        )
    if found.name == SLOW:
        notes.append(
            "majority vote at a depth of many times the number of samples only"
            + ("" if data is None else f", here {len(data.inputs)}")
            + ": with B′ = 1 kernels flatten as a power of the depth"
        )
    if found.name == SINGULAR and math.isinf(found.slope_at_one):
        notes.append(f"{phi.name} jumps: the kernel is singular as a logarithm, weaker than any power")
    if phi.derivative is None:
        notes.append(f"{phi.name} jumps, and has no tangent kernel: only the last layer can be trained")
    return notes


def _estimated(data: SphereData, notes: list[str]) -> float | None:
    try:
        found, error = two_nn(data.inputs)
    except ValueError as problem:
        notes.append(f"no dimension can be estimated: {problem}; give dimension for the Hilbert estimate")
        return None
    notes.append(f"dimension {found:.3g} ± {error:.2g} is estimated from the inputs; give dimension for another")
    return max(found, 0.5)


def _classified(
    phi: Activation, data: SphereData, depth: int, variance: float, notes: list[str]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The class of each query, by kernel, at some depths up to this one."""
    train, query = distances(data.inputs, data.inputs), distances(data.queries, data.inputs)
    np.fill_diagonal(train, 0.0)
    depths = sorted({*(d for d in (1, 2, 5, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000) if d < depth), depth})
    for kernels in deep_kernels(phi, depths, variance):
        given = {}
        for name, tangent in (("K", False), ("T", True)):
            if tangent and kernels.ntk is None:
                continue
            try:
                scores = regress(kernels, train, query, data.targets, tangent)
            except ValueError as error:
                raise UserError(f"{name} at depth {kernels.depth}: {error}") from None
            given[name] = scores.values.argmax(1)
            if scores.jitter and kernels.depth == depth:
                notes.append(f"{name} is singular: {scores.jitter:g} of its diagonal is added to it")
        yield kernels.depth, given


class _Answers:
    """What the simple classifiers say of the queries, and what others share with them."""

    def __init__(self, data: SphereData, dimension: float | None) -> None:
        query = distances(data.queries, data.inputs)
        self._truth = data.truth
        self._simple = {
            "nearest": data.targets[query.argmin(1)].argmax(1),
            "majority": np.full(len(query), data.targets.sum(0).argmax()),
        }
        if dimension is not None:
            self._simple["Hilbert"] = hilbert_scores(query, data.targets, dimension).argmax(1)

    def rows(self, given: Mapping[str, np.ndarray]) -> list[Row]:
        """Accuracies and agreements at one depth."""
        rows: list[Row] = [("queries", len(self._simple["majority"]), "1", "classified")]
        if self._truth is not None:
            for name, answer in [*given.items(), *self._simple.items()]:
                rows.append((f"accuracy_{name}", self._share(answer), "1", f"of {_LONG[name]}"))
        for kernel, answer in given.items():
            for name, simple in self._simple.items():
                share = float((answer == simple).mean())
                rows.append((f"{kernel}_as_{name}", share, "1", f"of queries with the class that {_LONG[name]} gives"))
        return rows

    def picture(self, by_depth: Mapping[int, Mapping[str, np.ndarray]]) -> Picture | None:
        """Accuracy by depth, or agreement with the nearest neighbour where queries have no labels."""
        if len(by_depth) < 2:
            return None
        lines = {name: [self._share(given[name]) for given in by_depth.values()] for name in by_depth[1]}
        if self._truth is not None:
            lines |= {f"({name})": [self._share(answer)] * len(by_depth) for name, answer in self._simple.items()}
        series = {name: [(float(d), x) for d, x in zip(by_depth, line)] for name, line in lines.items()}
        up = "accuracy (1)" if self._truth is not None else "agreement with the nearest neighbour (1)"
        return Picture(series, across="depth", up=up, log_across=True)

    def _share(self, answer: np.ndarray) -> float:
        return float((answer == (self._simple["nearest"] if self._truth is None else self._truth)).mean())


def _by_distance(phi: Activation, found: Limit, depth: int, variance: float) -> Picture:
    """K by distance over its value at ρ = ½, in logarithms; the line of a singular kernel has the slope −α."""
    u = np.geomspace(1e-6, 0.5, 25)
    lines = {}
    for kernels in deep_kernels(phi, sorted({1, round(math.sqrt(depth)), depth}), variance):
        logs = kernels.at(u) if kernels.apart else np.log1p(-np.exp(kernels.at(u)))
        # A nearest neighbour's kernel falls without end.
        lines[f"depth {kernels.depth}"] = np.minimum(logs - logs[-1], _SHOWN)
    if found.name == SINGULAR:
        lines[f"(α = {found.exponent:.3g})"] = -found.exponent * np.log(u / u[-1])
    series = {name: list(zip(np.log10(u).tolist(), (line / math.log(10)).tolist())) for name, line in lines.items()}
    return Picture(series, across="log₁₀ of 1 − ρ", up="log₁₀ K, less that at ρ = ½ (1)")
