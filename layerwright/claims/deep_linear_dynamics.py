"""Deep linear networks learn mode by mode as the exact solution says; from orthogonal starts depth costs no time.

Protocol: bias-free linear networks learn digits, targets of mean 0 and variance 1, by gradient descent on all examples
in the pixels' principal components. (1) On whitened inputs, networks of 2, 3 and 5 matrices start decoupled, every mode
of the task at strength 0.001, and take small steps; the time at which a mode is halfway is held against
`learning_time`. (2) Networks of 2 matrices start from small normal weights, as the paper's do. A mode then starts from
‖a + b‖²/4 with a and b what the first matrix makes of its input and the second of its output, for only the sum of the
two grows (derived here). (3) On the components as they are, networks of 4 to 16 matrices start from random orthogonal
matrices, or from normal ones of variance 1/width, which keep the length of a vector on average. Steps until 2 % of the
error is left are counted at the best of 31 learning rates, for each depth its own.

Control: the exact solution of one matrix more is at least 10 % off; every network learns, and the best learning rate is
never the first or the last.

Failure: half times off by 2 % from decoupled starts, or by 20 % from small random ones; steps from orthogonal starts
that grow or shrink by half as depth grows fourfold, or steps from normal starts that do not grow by half; a best
learning rate that does not fall as one over depth. The paper learns MNIST as it is, with hidden layers of 1000 units
and 2 to 99 matrices.

How it was set: two pilot seeds, none of those recorded, learned whitened digits in (3), in ten steps or so, which are
too few to compare, and went to 32 matrices, which took too long. Two runs on the first four of the seeds then left one
number open each: with 18 learning rates the power of the best one, between -1.21 and -0.67, and with 31 the growth from
normal starts, whose steps differ by a factor of ten from seed to seed. So there are eight seeds, and growth is counted
in doublings. The bounds stayed as they were written first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.maths.deep_linear import learning_time
from layerwright.report.lines import lines

SIZES = {
    "small": {"width": 32, "depths": [4, 8, 16], "examples": 1000},
    "full": {"width": 48, "depths": [4, 8, 16, 32], "examples": 1500},
}
EXACT_DEPTHS, MODES, START, RATE = (2, 3, 5), 5, 1e-3, 0.02
RANDOM_STD, LEFT, MOST_STEPS = 1e-3, 0.02, 5000
RATES = torch.logspace(-3, 0, 31, dtype=torch.float64)
GROWS = 0.585  # log2 of one half more
EXPECTED = (
    Expectation("decoupled_error", "half times off the exact solution's, relative, largest", high=0.02),
    Expectation("random_error", "the same from small random starts, mean over modes", low=-0.2, high=0.2),
    Expectation(
        "orthogonal_growth", "log2 of steps to learn, deepest over shallowest, orthogonal", low=-GROWS, high=GROWS
    ),
    Expectation("normal_growth", "the same, normal", low=GROWS),
    Expectation("rate_power", "p of best learning rate ~ depth^p, orthogonal", low=-1.3, high=-0.7),
    Expectation("other_depth", "half times off those of one matrix more, least", low=0.1, control=True),
    Expectation("learned", "share of networks that learn", low=0.999, control=True),
    Expectation("at_the_edge", "share of best learning rates that are the first or the last", high=0.001, control=True),
    Expectation("normal_rate_power", "for scale: p, normal"),
    Expectation("advantage", "for scale: log2 of steps, normal over orthogonal, deepest"),
    Expectation("strongest", "for scale: strength of the strongest mode"),
    Expectation("weakest", "for scale: strength of the weakest mode that is timed"),
)


@claim(paper="1312.6120", minutes=(1, 30), seeds=(8, 8))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size: dict[str, Any] = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    figure = lines(
        {
            kind: list(zip(size["depths"], np.exp(np.mean([np.log(t["steps"][kind]) for t in trials], axis=0))))
            for kind in STARTS
        },
        across="matrices", up="steps until 2 % of the error is left, geometric mean", log=True, log_across=True,
        label="Steps to learn by depth, from orthogonal and from normal starts",
    )  # fmt: skip
    conditions = size | {
        "data": "scikit-learn digits, principal components, as many as the width; variance 1 for each, or on average",
        "steps_by_depth": {kind: np.mean([t["steps"][kind] for t in trials], axis=0).tolist() for kind in STARTS},
        "learning_rates": f"{len(RATES)} from {RATES[0]:g} to {RATES[-1]:g}",
    }
    return judge(
        "Half times are the exact solution's; depth costs no steps from orthogonal starts, and many from normal ones.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


def _trial(seed: int, width: int, depths: list[int], examples: int) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    task, scales = correlations(examples, width, seed)
    u, s, vt = torch.linalg.svd(task, full_matrices=False)
    exact, other = [], []
    for depth in EXACT_DEPTHS:
        times = half_times(decoupled(depth, u, vt, width, generator), task)
        exact.append(times / predicted(s, depth, [START] * MODES) - 1)
        other.append(times / predicted(s, depth + 1, [START] * MODES) - 1)
    small = [RANDOM_STD * normal(*shape, generator) for shape in ((width, width), (len(task), width))]
    first = (vt @ small[0].T + u.T @ small[1]).square().sum(1) / 4
    random = half_times(small, task) / predicted(s, 2, first.tolist()) - 1
    found = {
        kind: [learn(start(depth, width, len(task), generator), task, scales) for depth in depths]
        for kind, start in STARTS.items()
    }
    steps = {kind: [step for step, _ in runs] for kind, runs in found.items()}
    best = [k for runs in found.values() for _, k in runs]
    powers = {kind: power(depths, [RATES[k].item() for _, k in runs]) for kind, runs in found.items()}
    return {
        "decoupled_error": np.abs(exact).max(),
        "random_error": random.mean(),
        "orthogonal_growth": np.log2(steps["orthogonal"][-1] / steps["orthogonal"][0]),
        "normal_growth": np.log2(steps["normal"][-1] / steps["normal"][0]),
        "rate_power": powers["orthogonal"],
        "other_depth": np.abs(other).min(),
        "learned": float(np.mean([step < MOST_STEPS for runs in steps.values() for step in runs])),
        "at_the_edge": float(np.mean([k in (0, len(RATES) - 1) for k in best])),
        "normal_rate_power": powers["normal"],
        "advantage": np.log2(steps["normal"][-1] / steps["orthogonal"][-1]),
        "strongest": s[0].item(),
        "weakest": s[MODES - 1].item(),
        "steps": steps,
    }


def power(depths: list[int], rates: list[float]) -> float:
    """P of rate ~ depth^p.

    Example:
        >>> round(power([4, 8, 16], [0.4, 0.2, 0.1]), 6)
        -1.0
    """
    return float(np.polyfit(np.log(depths), np.log(rates), 1)[0])


# The task


def correlations(examples: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Correlations of targets with whitened inputs, `[10, width]`, and the scales of the inputs as they are.

    These are all that gradient descent sees of the data.
    """
    images, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(images))[:examples]
    left, scales, _ = np.linalg.svd(images[rows] - images[rows].mean(0), full_matrices=False)
    y, scales = np.eye(10)[labels[rows]], scales[:width]
    task = ((y - y.mean(0)) / y.std(0)).T @ left[:, :width] / examples**0.5
    return torch.from_numpy(task), torch.from_numpy(scales / (scales**2).mean() ** 0.5)


def predicted(s: Tensor, depth: int, starts: list[float]) -> np.ndarray:
    """The exact half times of the strongest modes, in steps times learning rate."""
    strengths = s[:MODES].tolist()
    return np.array([learning_time(top, depth, a, (a + top) / 2) for top, a in zip(strengths, starts)])


# Starts


def normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """N(0, 1)."""
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows, for no more rows than columns, at random."""
    q, r = torch.linalg.qr(normal(columns, columns, generator))
    return (q * r.diagonal().sign())[:, :rows].T


def decoupled(depth: int, u: Tensor, vt: Tensor, width: int, generator: torch.Generator) -> list[Tensor]:
    """Matrices whose product has every mode of the task at one strength, and nothing else."""
    between = [orthogonal(len(vt), width, generator).T for _ in range(depth - 1)]
    ends = [vt.T, *between, u]
    return [START ** (1 / depth) * after @ before.T for before, after in pairwise(ends)]


def _orthogonal_start(depth: int, width: int, outputs: int, generator: torch.Generator) -> list[Tensor]:
    return [orthogonal(width, width, generator) for _ in range(depth - 1)] + [orthogonal(outputs, width, generator)]


def _normal_start(depth: int, width: int, outputs: int, generator: torch.Generator) -> list[Tensor]:
    rows = [width] * (depth - 1) + [outputs]
    return [normal(n, width, generator) / width**0.5 for n in rows]


Start = Callable[[int, int, int, torch.Generator], list[Tensor]]
STARTS: dict[str, Start] = {"orthogonal": _orthogonal_start, "normal": _normal_start}


# Training


def descend(weights: list[Tensor], task: Tensor, scales: Tensor, rates: Tensor) -> Tensor:
    """One step in place for each learning rate, `[R, rows, columns]` each; what whitened inputs became before it."""
    product = scales * weights[0]
    for w in weights[1:]:
        product = w @ product
    slopes = torch.autograd.grad((task - product).square().sum() / 2, weights)
    with torch.no_grad():
        for w, slope in zip(weights, slopes):
            w -= rates[:, None, None] * slope
    return product.detach()


def half_times(start: list[Tensor], task: Tensor) -> np.ndarray:
    """When each of the strongest modes is halfway from its start to its end, in steps times learning rate."""
    weights = [w.clone()[None].requires_grad_() for w in start]
    u, s, vt = torch.linalg.svd(task, full_matrices=False)
    rate = torch.tensor([RATE], dtype=torch.float64)
    strengths: list[Tensor] = []
    while not strengths or (strengths[-1] < (strengths[0] + s[:MODES]) / 2).any():
        product = descend(weights, task, torch.ones(()), rate)[0]
        strengths.append((u.T @ product @ vt.T).diagonal()[:MODES])
    line = torch.stack(strengths)
    half = (line[0] + s[:MODES]) / 2
    after = (line < half).sum(0)  # strengths grow, so that this is the first step beyond
    before = line[after - 1, range(MODES)]
    part = (half - before) / (line[after, range(MODES)] - before)
    return RATE * (after - 1 + part).numpy()


def learn(start: list[Tensor], task: Tensor, scales: Tensor) -> tuple[int, int]:
    """Steps until a small share of the error is left at the learning rate that is fastest, and which that is."""
    weights = [w.expand(len(RATES), -1, -1).clone().requires_grad_() for w in start]
    for step in range(MOST_STEPS):
        left = (task - descend(weights, task, scales, RATES)).square().sum((1, 2)) / task.square().sum()
        done = left < LEFT
        if done.any():
            return step, int(left.nan_to_num(torch.inf).argmin())
    return MOST_STEPS, 0
