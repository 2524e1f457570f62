"""Infinitely wide and deep classifiers are nearest neighbour, majority vote or a singular kernel; one kind is optimal.

Protocol: two classes of points on a circle and on a sphere, drawn from Dirichlet distributions and scaled to norm 1, as
the paper's code does, with classes that overlap and a Bayes rule that is known. Exact kernels of infinitely wide
networks are taken through thousands of layers, and test points are classified by regression with them: those of h₂
(A = A′ = 0), of squared ReLU (A > 0, B′ > 1), of ReLU (A > 0, B′ = 1; its tangent kernel, on few samples and at the
greatest depth) and of the optimal activation for the dimension of the data (A = 0, A′ < 1 < B′). Judged is that they
agree with nearest neighbour, with majority vote and with the Hilbert estimate; and that the error of the optimal
activation above the Bayes error falls with the number of samples, and ends below those of nearest neighbour and of
majority vote. Errors are means over the labels that each test point may have: they do not depend on those drawn.

Control: the Hilbert estimate, which has no depth, falls as well: else there are too few samples to see it. The Bayes
rule is wrong as often on labels drawn as it must be. And nearest neighbour stays where theory has it for many samples,
at E 2η(1 − η), η the chance of the one class.

Failure: an agreement below its bound, or an error of the optimal activation that does not fall or ends above. The paper
shows consistency in the limit of samples; the Hilbert estimate comes near it as slowly as their logarithm. For scale:
the optimal activation for eight dimensions on the same data; an activation with A > 0 and B′ < 1, of which the paper's
taxonomy in three parts says nothing here, and which is not majority vote; and the optimal activation's tangent kernel.

How it was set: bounds before the first run. It had ReLU at a depth of 20 000, where 0.97 of the points were as majority
vote has them; the paper's code takes 50 000 for 100 samples, and so does this now. There the one data set of eight in
which classes stood 47 to 53 was not there yet, as depth goes with samples over the margin: these samples now are 40 of
one class and 60 of the other, as shares are fixed in the paper's code. Nothing else was changed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import dirichlet

from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.maths.activation import activation
from layerwright.maths.deep_kernels import DeepKernels, deep_kernels
from layerwright.maths.kernel_classifier import distances, hilbert_scores, regress
from layerwright.maths.optimal_activation import optimal
from layerwright.report.lines import lines

SIZES = {
    "small": {"samples": [100, 400, 1600], "tests": 2000, "depth": 2000, "relu_depth": 50_000},
    "full": {"samples": [100, 400, 1600, 6400], "tests": 5000, "depth": 5000, "relu_depth": 50_000},
}
# Parameters of both classes by dimension, and the share of the first; those of one dimension are the paper's.
CLASSES = {1: ((1.0, 2.0), (2.0, 1.0)), 2: ((1.0, 2.0, 2.0), (2.0, 2.0, 1.0))}
SHARE = 0.4
EXPECTED = (
    Expectation("fall", "change of ln(error above Bayes) when samples double, optimal activation", high=0),
    Expectation("to_nearest", "error above Bayes with most samples, optimal over nearest neighbour", high=1),
    Expectation("to_majority", "the same over majority vote", high=1),
    Expectation("as_nearest", "h₂: share of test points classified as nearest neighbour does", low=0.99),
    Expectation("as_majority", "squared ReLU: share classified as majority vote does", low=0.99),
    Expectation("relu_as_majority", "ReLU, all layers trained, fewest samples, greatest depth: the same", low=0.99),
    Expectation("as_hilbert", "optimal: share classified as the Hilbert estimate does", low=0.95),
    Expectation("hilbert_fall", "change of ln(error above Bayes) when samples double, Hilbert", high=0, control=True),
    Expectation("bayes_gap", "error of the Bayes rule on labels drawn, less its expectation", low=-0.03, high=0.03,
                control=True),
    Expectation("nearest_stays", "error above Bayes, nearest neighbour over its limit", low=0.8, high=1.25,
                control=True),
    Expectation("tangent_as_hilbert", "optimal, all layers trained: share classified as the Hilbert estimate does"),
    Expectation("shallow_as_hilbert", "optimal, one layer: the same"),
    Expectation("constant_as_majority", "A > 0, B′ < 1 (sigmoid): share classified as majority vote does"),
    Expectation("eight_to_optimal", "error above Bayes with most samples, optimal for eight dimensions over optimal"),
    Expectation("bayes", "for scale: error of the Bayes rule"),
    Expectation("optimal", "for scale: error above it with most samples, optimal"),
    Expectation("nearest", "for scale: the same, nearest neighbour"),
)  # fmt: skip


@claim(paper="2204.14126", minutes=(2, 15), seeds=(4, 8))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size: dict[str, Any] = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    curves = {name: np.mean([t["curves"][name] for t in trials], axis=0).tolist() for name in trials[0]["curves"]}
    figure = lines(
        {name: list(zip(np.log10(size["samples"]).tolist(), curve)) for name, curve in curves.items()},
        across="log₁₀ samples", up="error above Bayes (1)",
        label="Error above the Bayes rule by number of samples, mean of circle and sphere",
    )  # fmt: skip
    conditions = size | {"dirichlet": {str(d): given for d, given in CLASSES.items()}, "share_of_first_class": SHARE}
    return judge(
        "Depth makes nearest neighbour, majority vote or a singular kernel, and the optimal activation nears Bayes.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


class Points(NamedTuple):
    """Points of norm 1, a label drawn for each, and the chance that it is 1."""

    x: np.ndarray
    label: np.ndarray
    chance: np.ndarray


def _trial(seed: int, samples: list[int], tests: int, depth: int, relu_depth: int) -> Trial:
    found = [_one(seed, d, samples, tests, depth, relu_depth) for d in CLASSES]
    numbers = {name: float(np.mean([one[name] for one in found])) for name in found[0] if name != "curves"}
    curves = {name: np.mean([one["curves"][name] for one in found], axis=0) for name in found[0]["curves"]}
    return numbers | {"curves": curves}


def _one(seed: int, dimension: int, samples: list[int], tests: int, depth: int, relu_depth: int) -> dict[str, Any]:
    """All numbers on the data of one dimension; smaller sets of samples are part of larger ones."""
    rng = np.random.default_rng([seed, dimension])
    train, test = (draw(dimension, n, rng) for n in (samples[-1], tests))
    best = f"optimal:{dimension}"
    excess: dict[str, list[float]] = {name: [] for name in ("optimal", "nearest", "(Hilbert)", "(majority)")}
    for n in samples:
        some = Points(*(part[:n] for part in train))
        simple = by_rule(some, test.x, dimension)
        answers = {"optimal": classify(tables(best, depth), some, test.x), "nearest": simple["nearest"]}
        answers |= {"(Hilbert)": simple["hilbert"], "(majority)": simple["majority"]}
        for name, line in excess.items():
            line.append(above_bayes(answers[name], test.chance))
    middle, few = Points(*(part[: samples[len(samples) // 2]] for part in train)), in_shares(train, samples[0])

    def agreement(what: str, name: str, layers: int, points: Points, tangent: bool = False) -> float:
        answer = classify(tables(name, layers), points, test.x, tangent)
        return float((answer == by_rule(points, test.x, dimension)[what]).mean())

    eight = above_bayes(classify(tables("optimal:8", depth), train, test.x), test.chance)
    limit = float((2 * test.chance * (1 - test.chance) - np.minimum(test.chance, 1 - test.chance)).mean())
    doublings = np.log2(samples[-1] / samples[0])
    bayes = (test.chance > 0.5).astype(int)
    error = float(np.minimum(test.chance, 1 - test.chance).mean())
    return {
        "fall": np.log(excess["optimal"][-1] / excess["optimal"][0]) / doublings,
        "to_nearest": excess["optimal"][-1] / excess["nearest"][-1],
        "to_majority": excess["optimal"][-1] / excess["(majority)"][-1],
        "as_nearest": agreement("nearest", "hermite:2", depth, middle),
        "as_majority": agreement("majority", "squared_relu", depth, middle),
        "relu_as_majority": agreement("majority", "relu", relu_depth, few, tangent=True),
        "as_hilbert": agreement("hilbert", best, depth, middle),
        "hilbert_fall": np.log(excess["(Hilbert)"][-1] / excess["(Hilbert)"][0]) / doublings,
        "bayes_gap": float((bayes != test.label).mean()) - error,
        "nearest_stays": excess["nearest"][-1] / limit,
        "tangent_as_hilbert": agreement("hilbert", best, depth, middle, tangent=True),
        "shallow_as_hilbert": agreement("hilbert", best, 1, middle),
        "constant_as_majority": agreement("majority", "sigmoid", depth, middle),
        "eight_to_optimal": eight / excess["optimal"][-1],
        "bayes": error,
        "optimal": excess["optimal"][-1],
        "nearest": excess["nearest"][-1],
        "curves": excess,
    }


def draw(dimension: int, count: int, rng: np.random.Generator) -> Points:
    """Points of both classes in random order."""
    label = (rng.random(count) < SHARE).astype(int)
    first, second = CLASSES[dimension]
    x = np.where(label[:, None] == 1, rng.dirichlet(first, count), rng.dirichlet(second, count))
    one, other = SHARE * dirichlet.pdf(x.T, first), (1 - SHARE) * dirichlet.pdf(x.T, second)
    return Points(x / np.linalg.norm(x, axis=1, keepdims=True), label, one / (one + other))


def in_shares(points: Points, count: int) -> Points:
    """So many of them, the first of each class, in fixed shares."""
    ones = round(SHARE * count)
    chosen = np.concatenate([np.flatnonzero(points.label == k)[:n] for k, n in ((1, ones), (0, count - ones))])
    return Points(*(part[chosen] for part in points))


@lru_cache
def tables(name: str, depth: int) -> DeepKernels:
    """Kernels at a depth, made once: they do not depend on the data."""
    kind, _, dimension = name.partition(":")
    (found,) = deep_kernels(activation(optimal(float(dimension)) if kind == "optimal" else name), [depth])
    return found


def classify(kernels: DeepKernels, train: Points, x: np.ndarray, tangent: bool = False) -> np.ndarray:
    """Labels of new points by regression with a kernel."""
    inside, outside = distances(train.x, train.x), distances(x, train.x)
    return np.asarray(regress(kernels, inside, outside, np.eye(2)[train.label], tangent).values.argmax(1))


def by_rule(train: Points, x: np.ndarray, dimension: int) -> dict[str, np.ndarray]:
    """Labels of new points by nearest neighbour, by majority and by the Hilbert estimate."""
    outside, targets = distances(x, train.x), np.eye(2)[train.label]
    return {
        "nearest": train.label[outside.argmin(1)],
        "majority": np.full(len(x), targets.sum(0).argmax()),
        "hilbert": hilbert_scores(outside, targets, dimension).argmax(1),
    }


def above_bayes(answer: np.ndarray, chance: np.ndarray) -> float:
    """Error above that of the Bayes rule, mean over points.

    Example:
        >>> above_bayes(np.array([1, 1]), np.array([0.9, 0.25]))
        0.25
    """
    return float((np.abs(2 * chance - 1) * (answer != (chance > 0.5))).mean())
