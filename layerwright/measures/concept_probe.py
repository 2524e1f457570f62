"""What a linear probe can read off every state of the stream, and from which depth on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.labelled import Labelled, labelled
from layerwright.core.reduce import quantiles
from layerwright.core.registry import measure
from layerwright.core.table import Estimate
from layerwright.maths import probes
from layerwright.maths.resampling import resampled_sums
from layerwright.maths.ridge import Split, split_sequences
from layerwright.maths.threads import on_threads

_NAMES = ("accuracy", "auc", "selectivity", "jump", "convergence", "iterations", "converged")
# A logistic regression costs as many weights as there are classes; for more the ridge regression has to do.
_LOGISTIC_CLASSES = 20


class _Task(NamedTuple):
    """What is probed for: labels of places, and the same ones shuffled."""

    labels: dict[str, Tensor]
    controls: list[Tensor]
    split: Split
    sequences: np.ndarray


@measure(
    unit=dict.fromkeys(_NAMES, "1"), range=(-1, None), tier="deep", paper="2404.07066",
    index=("point", "concept", "probe"),
)  # fmt: skip
def concept_probe(
    features: Tensor,
    sequences: Tensor,
    positions: Tensor,
    targets: Tensor,
    token_ids: Tensor,
    summaries: Tensor,
    sequence_labels: Tensor,
    *,
    iterations: int = 100,
    seed: int = 0,
) -> dict[tuple[int, str, str, str], float | Estimate]:
    """How well a linear probe reads a concept off every state of the stream, on sequences it was not fitted on.

    The concept is the label of the sequences where the data give any (`label`), read off their summaries. Otherwise it
    is made from the tokens, from simple to hard: `late_position` (in the later half), `frequent_token` (one of the most
    frequent ones that make up half of the text) and `frequent_next_token` (the token that follows is). With α_i the
    accuracy at point i of L,

        accuracy α = share of held-out places that are named right,   selectivity = α − α of shuffled labels
        jump = min {i/L : α_i/α_{i−1} ≥ 1.1},   convergence = max {i/L : |α_i/α_{i−1} − 1| ≥ 0.03}

    `auc` is the chance that a place of a class scores higher than one of another class. `ridge` is a ridge regression
    of the classes' indicators, each half of the held-out places with the penalty that is best on the other;
    `logistic` a logistic regression on standardised features, with its `iterations`, and `converged` 1 or 0. The three
    fifths of the sequences that probes are fitted on are the same at all points. `jump` and `convergence` stand at the
    point where they happen, and nowhere where they do not: with n held-out places, changes below about √(1/n) are
    chance. A probe that finds a concept does not say that the model uses it.

    Args:
        features: every state at the collected tokens, `[L + 1, n, d]`.
        sequences: number of the sequence of each, `[n]`.
        positions: in the sequence, `[n]`.
        targets: the token that follows, `[n]`.
        token_ids: the token itself, `[n]`.
        summaries: every state of each sequence, `[L + 1, S, d]`.
        sequence_labels: `[S]`.
        iterations: of the logistic regression, at most.
        seed: of the split, of the shuffled labels and of the intervals.

    Returns:
        by point, concept, probe and quantity; accuracy and selectivity with an interval over held-out sequences.

    Raises:
        UserError: nothing to name, one class, fewer than three sequences, labels of the wrong length, states that are
            not finite.

    Example:
        >>> import torch
        >>> labels = torch.arange(20) % 2
        >>> states = torch.stack([torch.zeros(20, 1), labels[:, None].float()])
        >>> none = torch.full((20,), -1)
        >>> found = concept_probe(states, torch.arange(20), 0 * labels, none, none, states, labels)
        >>> found[1, "label", "ridge", "accuracy"].value, found[1, "label", "logistic", "auc"]
        (1.0, 1.0)
        >>> found[1, "label", "ridge", "jump"]
        1.0

    Reference: arXiv 2404.07066.
    """
    if iterations < 1:
        raise UserError(f"got iterations={iterations}; expected 1 or more")
    if sequence_labels.shape != summaries.shape[1:2]:
        raise UserError(f"got {len(sequence_labels)} labels for {summaries.shape[1]} sequences; give one for each")
    if (sequence_labels >= 0).any():
        chosen = labelled(summaries, sequence_labels)
        labels, numbers = {"label": chosen.places}, chosen.kept
    else:
        kept, labels = probes.made_labels(positions, targets, token_ids)
        if not labels:
            raise UserError(
                "the data have no labels, and no tokens that differ to make some from; give labels or more data"
            )
        chosen, numbers = Labelled(features, kept, kept, kept), sequences[kept]
    task = _task(labels, numbers, seed)
    found: dict[tuple[int, str, str, str], float | Estimate] = {}
    points = range(len(chosen.states))
    for point, here in enumerate(on_threads(lambda k: _probe(chosen.at(k), task, iterations, seed), points)):
        for (concept, probe), values in here.items():
            found |= {(point, concept, probe, name): value for name, value in values.items()}
    return found | _depths(found, len(chosen.states) - 1)


def _task(labels: dict[str, Tensor], sequences: Tensor, seed: int) -> _Task:
    try:
        split = split_sequences(sequences, seed)
    except ValueError as error:
        raise UserError(f"{error}; give more data") from None
    held = sequences[split.held].unique(return_inverse=True)[1]
    return _Task(labels, [probes.shuffled(x, seed) for x in labels.values()], split, held.cpu().numpy())


def _probe(x: Tensor, task: _Task, iterations: int, seed: int) -> dict[tuple[str, str], dict[str, float | Estimate]]:
    """Numbers of both probes for every concept at one point."""
    both, count = [*task.labels.values(), *task.controls], len(task.controls)
    scores = probes.ridge_scores(x, both, task.split)
    fits = []
    if max(int(classes.max()) for classes in both) < _LOGISTIC_CLASSES:
        fits = probes.logistic_scores(x, both, task.split, iterations)
    found: dict[tuple[str, str], dict[str, float | Estimate]] = {}
    for k, (concept, classes) in enumerate(task.labels.items()):
        control = task.controls[k]
        found[concept, "ridge"] = _numbers(scores[k], scores[k + count], classes, control, task, seed)
        if fits:
            (real, steps), (of_control, _) = fits[k], fits[k + count]
            found[concept, "logistic"] = _numbers(real, of_control, classes, control, task, seed) | {
                "iterations": float(steps), "converged": float(steps < iterations)
            }  # fmt: skip
    return found


def _numbers(
    scores: Tensor, control: Tensor, labels: Tensor, shuffled: Tensor, task: _Task, seed: int
) -> dict[str, float | Estimate]:
    """Accuracy and selectivity with their intervals over held-out sequences, and the area under the curve."""
    right, by_chance = (
        np.bincount(task.sequences, (s.argmax(1) == y[task.split.held]).cpu().numpy())
        for s, y in ((scores, labels), (control, shuffled))
    )
    count = np.bincount(task.sequences).astype(float)
    sums = np.stack([right, right - by_chance, count])
    again = resampled_sums(sums, seed)
    low, high = quantiles(again[:2] / again[2])
    values = [Estimate(float(s.sum() / count.sum()), float(a), float(b)) for s, a, b in zip(sums[:2], low, high)]
    return {"accuracy": values[0], "auc": probes.area_under_curve(scores, labels, task.split), "selectivity": values[1]}


def _depths(
    found: dict[tuple[int, str, str, str], float | Estimate], depth: int
) -> dict[tuple[int, str, str, str], float | Estimate]:
    """Where each concept's accuracy jumps and where it has converged, over the depth."""
    curves: dict[tuple[str, str], list[float]] = {}
    for (_, concept, probe, name), value in found.items():
        if name == "accuracy" and isinstance(value, Estimate):
            curves.setdefault((concept, probe), []).append(value.value)
    return {
        (point, concept, probe, name): point / depth
        for (concept, probe), curve in curves.items()
        for name, point in probes.changes(curve).items()
    }
