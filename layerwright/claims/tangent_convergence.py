"""The tangent kernel of a network comes to its limit as 1/width, and training moves it less the wider the network is.

Protocol: networks of two hidden layers in NTK parametrisation, with erf, on points of a sphere. (1) At initialisation
the kernel of networks of growing width is held against that of infinite width: ‖Θ − Θ_∞‖²/‖Θ_∞‖², mean over networks.
(2) Networks are trained by gradient descent with full batches on the squared error, at a learning rate and for a number
of steps that do not depend on the width: ‖Θ_T − Θ_0‖/‖Θ_0‖, root mean square over networks. Both are fitted as powers
of the width.

What is expected: the paper proves both limits and gives no rate. An entry of Θ is a mean over units, so that its
variance is of order 1/width. A step moves the input of a unit by 1/√width times a weight behind it of random sign; in a
mean over units of a smooth function of it that is 1/width. (A bound of 1/√width is proven: arXiv 1902.06720, recalled.
Of relu, whose slope jumps, √width units of random sign change sides, which adds width^(−3/4).)

Control: the limit of relu, which networks with erf must not come to; the same networks with the output divided by
√width and the learning rate times the width, which learn the same and whose kernel must move at any width; and all must
learn. Reported beside: networks with relu, and how the kernel's alignment with the targets changes.

Failure: another power of the width at initialisation or in training. The paper shows kernels of widths 500 and 10 000,
and one of them after 200 steps.

How it was set: in a first run the other limit was that of one hidden layer more. It is 0.24 away, no farther than the
narrowest networks are from their own, so that the squared distance to it falls with width^(−0.2), at the bound, and the
run could not decide. That of relu is 0.7 away. No bound was changed; in later runs training has 100 steps, not 200.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import layerwright as lw
from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.report.lines import lines
from layerwright.theories.towers import Act, Dense, Tower, tower

SIZES = {
    "small": {"widths": [64, 128, 256, 512, 1024], "networks": 24, "trained": 8, "points": 16, "steps": 100},
    "full": {"widths": [64, 128, 256, 512, 1024, 2048], "networks": 64, "trained": 16, "points": 32, "steps": 400},
}
DIMENSION, DEPTH, VARIANCE = 8, 2, 2.0
# The learning rate over the largest at which gradient descent with the limit's kernel converges.
RATE = 0.25
EXPECTED = (
    Expectation("start_power", "a of mean squared distance to the limit ~ width^a", low=-1.2, high=-0.8),
    Expectation("change_power", "a of change in training ~ width^a", low=-1.25, high=-0.75),
    Expectation("other_power", "a of squared distance to the limit of relu ~ width^a", low=-0.2, control=True),
    Expectation("moving_power", "a of change ~ width^a, output over √width", low=-0.25, high=0.25, control=True),
    Expectation("moving_change", "change at the largest width, output over √width", low=0.1, control=True),
    Expectation("error_left", "largest share of the training error left", high=0.2, control=True),
    Expectation("relu_power", "for scale: a of change ~ width^a, relu"),
    Expectation("start", "for scale: distance to the limit at the largest width"),
    Expectation("change", "for scale: change at the largest width"),
    Expectation("alignment_change", "for scale: change of alignment with the targets, largest width"),
    Expectation("moving_alignment_change", "for scale: the same, output over √width"),
)


@claim(paper="1806.07572", minutes=(1, 30), seeds=(4, 5))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size: dict[str, Any] = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    names = trials[0]["curves"]
    curves = {name: np.exp(np.mean([np.log(t["curves"][name]) for t in trials], axis=0)) for name in names}
    figure = lines(
        {name: list(zip(size["widths"], curve.tolist())) for name, curve in curves.items()},
        across="width (units)", up="relative distance of kernels (1)", log=True, log_across=True,
        label="Tangent kernels by width: distance to the limit, and change in training",
    )  # fmt: skip
    conditions = size | {
        "network": f"{DEPTH} hidden layers, erf, C_W = {VARIANCE}, one output, NTK parametrisation",
        "data": f"normal points on the sphere in {DIMENSION} dimensions; target x₁ + x₁x₂, of variance 1",
        "optimiser": f"gradient descent, full batches, learning rate {RATE} times the largest of the limit",
    }
    return judge(
        "The squared distance to the limit and the change in training both fall as 1/width.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


def _trial(seed: int, widths: list[int], networks: int, trained: int, points: int, steps: int) -> Trial:
    x, y = data(points, seed)
    limits = {name: network(name, DEPTH) for name in ("erf", "relu")}
    exact, other = (limits[name].kernel(x).ntk for name in ("erf", "relu"))
    starts = {
        w: [kernel(limits["erf"].network(DIMENSION, w, seed=seed * networks + k), x) for k in range(networks)]
        for w in widths
    }
    start = [squared(starts[w], exact) for w in widths]
    arms = {
        "erf": [train(limits["erf"], x, y, w, trained, steps, seed) for w in widths],
        "moving": [train(limits["erf"], x, y, w, trained, steps, seed, w**-0.5) for w in widths],
        "relu": [train(limits["relu"], x, y, w, trained, steps, seed) for w in widths],
    }
    change = {arm: [found["change"] for found in some] for arm, some in arms.items()}
    return {
        "start_power": power(widths, start),
        "change_power": power(widths, change["erf"]),
        "other_power": power(widths, [squared(starts[w], other) for w in widths]),
        "moving_power": power(widths, change["moving"]),
        "moving_change": change["moving"][-1],
        "error_left": max(found["error_left"] for some in arms.values() for found in some),
        "relu_power": power(widths, change["relu"]),
        "start": start[-1] ** 0.5,
        "change": change["erf"][-1],
        "alignment_change": arms["erf"][-1]["alignment_change"],
        "moving_alignment_change": arms["moving"][-1]["alignment_change"],
        "curves": {
            "at the start, to the limit": [v**0.5 for v in start],
            "training": change["erf"],
            "(training, relu)": change["relu"],
            "(training, output over √width)": change["moving"],
        },
    }


def network(activation: str, depth: int) -> Tower:
    """The tower of so many hidden layers."""
    hidden = [word for _ in range(depth) for word in (Dense(VARIANCE), Act(activation))]
    return tower([*hidden, Dense()])


def data(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on the sphere of radius √d, and targets of mean 0 and variance 1."""
    x = torch.randn(points, DIMENSION, generator=torch.Generator().manual_seed(seed))
    x = x * DIMENSION**0.5 / x.norm(dim=1, keepdim=True)
    y = x[:, 0] + x[:, 0] * x[:, 1]
    return x, (y - y.mean()) / y.std()


class Times(nn.Module):
    """A network whose output is multiplied by a constant."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        """Wrap a network."""
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        """As the network."""
        return self.factor * self.inner(x)


def train(
    made: Tower, x: Tensor, y: Tensor, width: int, networks: int, steps: int, seed: int, factor: float = 1.0
) -> dict[str, float]:
    """What training does to networks of a width whose output is multiplied by a factor.

    Returns:
        root mean square of the change of their kernels, mean change of alignment, the largest share of the error left.
    """
    rate = RATE * 2 / float(torch.linalg.eigvalsh(made.kernel(x).ntk / len(x))[-1]) / factor**2
    changes, alignments, left = [], [], []
    for k in range(networks):
        model = Times(made.network(DIMENSION, width, seed=seed * networks + k), factor)
        before, errors = lw.tangent_kernel(model, x, outputs="trace"), []
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(steps):
            loss = (model(x).squeeze(1) - y).square().mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(loss.item())
        after = lw.tangent_kernel(model, x, outputs="trace")
        changes.append(float((after.values - before.values).square().sum() / before.values.square().sum()))
        alignments.append(after.alignment(y) - before.alignment(y))
        left.append(errors[-1] / errors[0])
    return {
        "change": float(np.mean(changes)) ** 0.5,
        "alignment_change": float(np.mean(alignments)),
        "error_left": max(left),
    }


def kernel(model: nn.Module, x: Tensor) -> Tensor:
    """The tangent kernel of a network of one output, `[N, N]`."""
    return lw.tangent_kernel(model, x, outputs="trace").values.double()


def squared(found: list[Tensor], limit: Tensor) -> float:
    """Mean squared distance over the limit's."""
    return float(np.mean([float((k - limit).square().sum() / limit.square().sum()) for k in found]))


def power(widths: list[int], values: list[float]) -> float:
    """The power of the width, by least squares of logarithms.

    Example:
        >>> round(power([10, 20, 40], [8.0, 4.0, 2.0]), 6)
        -1.0
    """
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])
