"""The loss of a model on each document of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layerwright.core.batch import Batch
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, call, on_device, rows
from layerwright.core.reduce import REPLICATES, quantiles
from layerwright.core.replay import in_float
from layerwright.core.rungs.answers import read_answer
from layerwright.core.stack import Stack

# Logits held at once: 128 MB in float32.
_LOGITS_AT_ONCE = 2**25


class Losses(NamedTuple):
    """Of each document, `[D]`: summed negative log-likelihood in nat, and the number of tokens that it sums over."""

    total: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nat a token, over all documents."""
        return float(self.total.sum() / self.tokens.sum())


def losses(stack: Stack, documents: Sequence[Inputs], prefix: int = 0) -> Losses:
    """The loss of each row of some batches, padding and the first `prefix` tokens left out.

    Raises:
        UserError: the model gives no logits, or nothing says what they should name.
    """
    parts = [part for batch in documents for part in _losses(stack, batch, prefix)]
    if not parts:
        raise UserError("the data is empty; expected at least one document")
    total, tokens = (torch.cat(x).numpy() for x in zip(*parts))
    if not tokens.sum():
        raise UserError("no document has a token to be predicted; expected documents of at least 2 tokens")
    return Losses(total, tokens)


def _losses(stack: Stack, inputs: Inputs, prefix: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A few rows at a time: logits over a large vocabulary are the largest tensors here."""
    n = batch_size(inputs)
    inputs = on_device(inputs, stack.model)
    first, size = 0, 1
    while first < n:
        part = rows(inputs, slice(first, first + size))
        logits = in_float(read_answer(call(stack.model, part)))
        yield _of_rows(stack, part, logits, prefix)
        first, size = first + size, max(1, _LOGITS_AT_ONCE // logits[0].numel())


def _of_rows(stack: Stack, inputs: Inputs, logits: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    batch = Batch.of(stack, inputs, 0, prefix, 1, 0)
    batch.settle(logits, logits)
    labels = batch.labels(stack)
    if labels is None:
        what = "gives no logits for its tokens" if stack.head is None else "is given no labels to predict"
        raise UserError(f"{type(stack.model).__name__} {what}, so that it has no loss; give labelled data")
    counted = labels != -100
    nll = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return nll.double().sum(1).cpu(), counted.sum(1).cpu()


def ratio(before: Losses, after: Losses, seed: int) -> tuple[float, float, float]:
    """The ratio of the mean losses on the same documents, and its 95 % bootstrap interval over documents.

        ρ = Σ_d after_d / Σ_d before_d,   d drawn with replacement, for both models the same

    Args:
        before: losses of one model.
        after: losses of the other on the same documents.
        seed: seeds the draws.

    Returns:
        the ratio and both ends of the interval, which are NaN with a single document.

    Example:
        >>> before, after = (Losses(np.array(x), np.array([1, 1])) for x in ([1.0, 3.0], [1.1, 3.3]))
        >>> [round(x, 6) for x in ratio(before, after, 0)]
        [1.1, 1.1, 1.1]
    """
    value = float(after.total.sum() / before.total.sum())
    documents = len(before.total)
    if documents < 2:
        return value, float("nan"), float("nan")
    drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
    low, high = quantiles((drawn @ after.total) / (drawn @ before.total))
    return value, float(low), float(high)
