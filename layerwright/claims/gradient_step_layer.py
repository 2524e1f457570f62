"""A layer of linear attention, trained to regress in context, takes one step of gradient descent on its context.

Protocol: one layer of linear self-attention, all four of its matrices free and drawn small, is trained on fresh tasks
y = wᵀx with w ~ N(0, I) and x uniform in [−1, 1]^d: from as many points as dimensions it says the target of one more.
On held-out tasks it is held against the layer that takes one exact step of gradient descent from w = 0 with the best
step for those tasks (`gradient_step_layer`, `best_step`): its loss, its predictions, the slopes of its predictions by
the query's point, and its weights. Weights are compared as the polynomial of the tokens that they make the prediction,
for many matrices make the same one. Slopes and loss are also told on tasks of another kind: Gaussian points with half
of the variances 16 times the others.

Control: the layer as drawn, and one that was trained as long with the contexts' targets taken from another task, must
not look like the step: a cosine of slopes below 1/2, in whichever direction. The constructed layer must be the step
itself, by an independent closed form.

Failure: with the controls met, a loss more than 5 % off, predictions more than 10 % off, slopes or weights that point
elsewhere. For scale: the losses, and the step that fits the trained layer best, over the best one. The paper (10
dimensions, 10 points, 5 seeds) finds the losses the same, cosines of almost 1, and differences of almost 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.maths.in_context import whole_context
from layerwright.maths.linear_attention import (
    AttentionLayer,
    best_step,
    gradient_step_layer,
    linear_attention,
    prediction,
    tokens,
)
from layerwright.maths.regression_tasks import regression_tasks
from layerwright.maths.similarity import cosine
from layerwright.report.lines import lines

DIMENSIONS = POINTS = 10
LEARNING_RATE, START, RATIO, LOOKS = 3e-3, 0.1, 16.0, 10
SIZES = {
    "small": {"steps": 1500, "rows": 512, "held": 4000},
    "full": {"steps": 10000, "rows": 2048, "held": 20000},
}
EXPECTED = (
    Expectation("slopes", "cosine of the slopes by the query's point, trained and constructed", low=0.99),
    Expectation("loss_ratio", "held-out loss, trained over constructed", low=0.95, high=1.05),
    Expectation("predictions", "root mean square difference of predictions, over those constructed", high=0.1),
    Expectation("weights", "cosine of the polynomials that the weights make", low=0.95),
    Expectation("slopes_elsewhere", "cosine of the slopes on ill-conditioned Gaussian points", low=0.95),
    Expectation("loss_elsewhere", "loss there, trained over constructed", low=0.9, high=1.1),
    Expectation("untrained", "cosine of the slopes, untrained, its size", high=0.5, control=True),
    Expectation("shuffled", "cosine of the slopes, trained on targets of other tasks, its size", high=0.5,
                control=True),
    Expectation("exact", "largest difference of a prediction, constructed layer and gradient step", high=1e-9,
                control=True),
    Expectation("step_ratio", "step that fits the trained layer best, over the best step"),
    Expectation("loss", "for scale: held-out loss of the trained layer, of the targets' variance"),
    Expectation("constructed_loss", "the same of the constructed layer"),
    Expectation("shuffled_loss", "the same of the layer trained on targets of other tasks"),
)  # fmt: skip


@claim(paper="2212.07677", minutes=(1.5, 60), seeds=(4, 5))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    across = np.linspace(0, size["steps"], LOOKS + 1)
    figure = lines(
        {name: list(zip(across, np.mean([t["curves"][name] for t in trials], axis=0).tolist())) for name in _CURVES},
        across="step of training", up="held-out loss, of the targets' variance",
        label="Held-out loss in training of a linear attention layer, beside that of one step of gradient descent",
    )  # fmt: skip
    conditions = size | {
        "dimensions": DIMENSIONS, "points": POINTS, "optimiser": f"Adam, learning rate {LEARNING_RATE}",
        "deviation_of_the_weights_as_drawn": START,
    }  # fmt: skip
    return judge(
        "A trained linear attention layer has the loss, predictions, slopes and weights of one gradient step.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


_CURVES = ("trained", "on other tasks' targets", "(one gradient step)")


class Tasks(NamedTuple):
    """Points and targets; the last of each task is the query."""

    xs: Tensor
    ys: Tensor


def _trial(seed: int, steps: int, rows: int, held: int) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    tasks, elsewhere = draw(held, generator), Tasks(*regression_tasks(held, POINTS, DIMENSIONS, ratio=RATIO, seed=seed))
    start = AttentionLayer(*(START * torch.randn(4, DIMENSIONS + 1, DIMENSIONS + 1, generator=generator)))
    best, apart = constructed(tasks)
    trained, curve = fit(start, tasks, steps, rows, generator)
    other, other_curve = fit(start, tasks, steps, rows, generator, shuffle=True)
    said, step = predictions(tasks, trained), predictions(tasks, best)
    size = float(tasks.ys[:, -1].square().mean())
    of_trained, of_best, of_other = (loss(tasks, layer) / size for layer in (trained, best, other))
    return {
        "slopes": slopes_alike(tasks, trained, best),
        "loss_ratio": of_trained / of_best,
        "predictions": float((said - step).norm() / step.norm()),
        "weights": float(cosine(polynomial(trained).flatten(), polynomial(best).flatten())),
        "slopes_elsewhere": slopes_alike(elsewhere, trained, best),
        "loss_elsewhere": loss(elsewhere, trained) / loss(elsewhere, best),
        "untrained": abs(slopes_alike(tasks, start, best)),
        "shuffled": abs(slopes_alike(tasks, other, best)),
        "exact": apart,
        "step_ratio": float(said @ step / step.square().sum()),
        "loss": of_trained, "constructed_loss": of_best, "shuffled_loss": of_other,
        "curves": dict(zip(_CURVES, (np.array(x) / size for x in (
            curve, other_curve, [of_best * size] * (LOOKS + 1))))),
    }  # fmt: skip


def draw(count: int, generator: torch.Generator) -> Tasks:
    """Tasks with uniform points, `[count, T + 1, d]` and `[count, T + 1]`."""
    xs = 2 * torch.rand(count, POINTS + 1, DIMENSIONS, generator=generator) - 1
    return Tasks(xs, (xs @ torch.randn(count, DIMENSIONS, 1, generator=generator)).squeeze(-1))


def constructed(tasks: Tasks) -> tuple[AttentionLayer, float]:
    """The layer that takes the best gradient step for these tasks, and how far from that step its predictions are."""
    given = whole_context(*tasks)
    step = best_step(given, tasks.ys[:, -1:].double(), 1).step
    layer = gradient_step_layer(DIMENSIONS, step)
    w = step * tasks.xs[:, :-1].double().mT @ tasks.ys[:, :-1, None].double()
    exact = (tasks.xs[:, -1:].double() @ w).flatten()
    return layer, float((predictions(tasks, layer) - exact).abs().max())


def fit(
    start: AttentionLayer, held: Tasks, steps: int, rows: int, generator: torch.Generator, shuffle: bool = False
) -> tuple[AttentionLayer, list[float]]:
    """Train on fresh tasks, with a rate that falls linearly over the last half; its loss on held-out tasks on the way.

    Args:
        start: the weights to start from.
        held: the tasks that the loss is told of.
        steps: of training.
        rows: tasks of a step.
        generator: of the tasks.
        shuffle: whether contexts have the targets of another task.
    """
    layer = AttentionLayer(*(nn.Parameter(w.clone()) for w in start))
    optimizer = torch.optim.Adam(layer, lr=LEARNING_RATE)
    looks, curve = np.linspace(0, steps, LOOKS + 1).round().astype(int).tolist(), []
    for step in range(steps + 1):
        if step in looks:
            curve += [loss(held, layer)] * looks.count(step)
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / steps))
        xs, ys = draw(rows, generator)
        shown = tokens(xs, ys.roll(1, 0) if shuffle else ys).float()
        found = (prediction(linear_attention(shown, layer)) - ys[:, -1]).square().mean()
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(layer, 1.0)
        optimizer.step()
    return AttentionLayer(*(w.detach() for w in layer)), curve


@torch.no_grad()
def predictions(tasks: Tasks, layer: AttentionLayer) -> Tensor:
    """What a layer says of each query, `[N]`, in float64."""
    return prediction(linear_attention(tokens(*tasks), AttentionLayer(*(w.double() for w in layer))))


def loss(tasks: Tasks, layer: AttentionLayer) -> float:
    """Mean squared error on the queries."""
    return float((predictions(tasks, layer) - tasks.ys[:, -1]).square().mean())


def slopes_alike(tasks: Tasks, layer: AttentionLayer, other: AttentionLayer) -> float:
    """Mean cosine of the slopes of two layers' predictions by the query's point."""
    return float(cosine(slopes(tasks, layer), slopes(tasks, other)).mean())


def slopes(tasks: Tasks, layer: AttentionLayer) -> Tensor:
    """How fast each prediction changes with its query's point, `[N, d]`."""
    shown = tokens(*tasks).requires_grad_()
    said = prediction(linear_attention(shown, AttentionLayer(*(w.double() for w in layer))))
    return torch.autograd.grad(said.sum(), shown)[0][:, -1, :-1]


def polynomial(layer: AttentionLayer) -> Tensor:
    """The prediction as coefficients of e_a e_b x_c, summed over the context, `[D, D, d]`; a and b may be swapped.

    Example:
        >>> found = polynomial(gradient_step_layer(1, 0.5))
        >>> found[0, :, 0].abs().tolist(), found[1, :, 0].abs().tolist()  # 0.5 Σ x y, times the query's x
        ([0.0, 0.25], [0.25, 0.0])
    """
    out = -(layer.projection @ layer.value)[-1].double()
    scores = (layer.key.mT @ layer.query).double()[:, :-1]
    found = out[:, None, None] * scores[None]
    return (found + found.transpose(0, 1)) / 2
