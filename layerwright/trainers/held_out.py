"""The loss on text that training never sees, document by document, before and after."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from layerwright.core.reduce import REPLICATES, quantiles
from layerwright.trainers.corpus import Corpus, collate
from layerwright.trainers.objective import IGNORED, Objective, cross_entropy


class Paired(NamedTuple):
    """Two losses on the same documents, nat per token, and their difference with its 95 % interval."""

    before: float
    after: float
    change: float
    low: float
    high: float


def held_out_sums(model: nn.Module, objective: Objective, corpus: Corpus, batch: int) -> np.ndarray:
    """Summed loss and number of tokens of each held-out document, `[2, document]`.

    The model is put into evaluation mode for it, and computes in the dtype of its weights, `batch` sequences at once.
    """
    sums = np.zeros((2, 1 + max(corpus.documents)))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(corpus.held_out), batch):
            inputs = collate(corpus.held_out[start : start + batch], device)
            targets = objective.targets(inputs)
            losses = cross_entropy(objective.logits(model, inputs), targets)
            for k, document in enumerate(corpus.documents[start : start + batch]):
                sums[:, document] += float(losses[k].double().sum()), int((targets[k] != IGNORED).sum())
    model.train(training)
    return sums


def mean_loss(sums: np.ndarray) -> float:
    """Of all tokens, nat.

    Example:
        >>> mean_loss(np.array([[6.0, 2.0], [3.0, 1.0]]))
        2.0
    """
    return float(sums[0].sum() / sums[1].sum())


def compare(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Paired:
    """Mean losses and their difference, with its 95 % bootstrap interval over documents.

    A replicate draws documents with replacement, the same ones for both models, and weighs tokens alike.

    Args:
        before: summed loss and number of tokens by document, `[2, document]`.
        after: the same documents with another model.
        seed: of the replicates.

    Returns:
        nat per token; the interval is NaN where there is one document.

    Example:
        >>> same = np.array([[4.0, 2.0, 3.0], [2.0, 1.0, 1.5]])
        >>> compare(same, same - [[1.0, 0.5, 0.75], [0, 0, 0]])  # half a nat a token better in every document
        Paired(before=2.0, after=1.5, change=-0.5, low=-0.5, high=-0.5)
    """
    values = mean_loss(before), mean_loss(after)
    documents = before.shape[1]
    if documents < 2:
        return Paired(*values, values[1] - values[0], np.nan, np.nan)
    drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
    low, high = quantiles((drawn @ (after[0] - before[0])) / (drawn @ before[1]))
    return Paired(*values, values[1] - values[0], float(low), float(high))
