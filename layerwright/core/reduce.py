"""From one number a token to a mean, a spread and a bootstrap interval over sequences, in one pass.

Only sums a sequence are kept, and a thinned sample of the tokens for the quantile, so that memory does not grow with
the number of tokens, and splitting the batches differently changes nothing beyond rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Key = tuple[Hashable, ...]
REPLICATES = 1000
_SAMPLE = 4096


class Reducer:
    """Statistics of one measure: rows named by keys, filled batch by batch."""

    def __init__(self) -> None:
        """Start empty."""
        self._pending: dict[Key, tuple[Tensor, Tensor | None]] = {}
        self._sums: list[np.ndarray] = []
        self._sample = np.empty((0, 0), dtype=np.float32)
        self._stride = 1
        self._tokens_seen = 0
        self.keys: list[Key] = []

    def add(self, key: Key, values: Tensor, where: Tensor | None = None) -> None:
        """Numbers of one row for the current batch: `[batch]` or `[batch, token]`, or one number.

        `where` narrows the tokens that count for this row.
        """
        self._pending[key] = values.reshape(len(values) if values.ndim else 1, -1), where

    def close_batch(self, mask: Tensor | None) -> None:
        """Reduce what was added since the last call; `mask` `[batch, token]` says which tokens count."""
        if not self._pending:
            return
        if not self.keys:
            self.keys = list(self._pending)
        if list(self._pending) != self.keys:
            raise RuntimeError("a batch gave other rows than the first one")
        values = torch.stack([v.detach() for v, _ in self._pending.values()]).float()
        base = torch.ones_like(values[0], dtype=torch.bool) if mask is None else mask.to(values.device)
        counted = torch.stack([base if where is None else base & where for _, where in self._pending.values()])
        self._pending = {}
        finite = values.isfinite()
        used = counted & finite
        x = values.masked_fill(~used, 0.0).double()
        top = values.masked_fill(~used, -torch.inf).amax(-1)
        stats = (x.sum(-1), x.square().sum(-1), used.sum(-1), (counted & ~finite).sum(-1), top)
        self._sums.append(torch.stack([s.double().cpu() for s in stats]).numpy())
        self._thin(values.flatten(1), base.flatten(), used.flatten(1))

    def _thin(self, values: Tensor, counted: Tensor, used: Tensor) -> None:
        """Keep every `stride`-th token of the run; the stride doubles whenever the sample is full."""
        places = torch.cumsum(counted, 0) - 1 + self._tokens_seen
        self._tokens_seen += int(counted.sum())
        chosen = counted & (places % self._stride == 0)
        kept = values[:, chosen].masked_fill(~used[:, chosen], torch.nan).cpu().numpy()
        self._sample = kept if self._sample.size == 0 else np.concatenate([self._sample, kept], axis=1)
        while self._sample.shape[1] > _SAMPLE:
            self._sample = self._sample[:, ::2]
            self._stride *= 2

    def finish(self) -> Reduced:
        """Everything reduced."""
        sums = np.concatenate(self._sums, axis=-1) if self._sums else np.zeros((5, 0, 0))
        total, squares, count, nonfinite, top = sums
        return Reduced(self.keys, total, squares, count, nonfinite, top, self._sample)


@dataclass
class Reduced:
    """Per row and sequence: sum, sum of squares, number of tokens, number of non-finite ones, maximum."""

    keys: list[Key]
    total: np.ndarray
    squares: np.ndarray
    count: np.ndarray
    nonfinite: np.ndarray
    top: np.ndarray
    sample: np.ndarray

    def mean(self) -> np.ndarray:
        """Token-weighted mean of each row; NaN where no token counts."""
        return _ratio(self.total.sum(1), self.count.sum(1))

    def peak(self) -> np.ndarray:
        """Maximum over tokens of each row."""
        return _finite(self.top.max(1, initial=-np.inf))

    def resampled(self, seed: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
        """Means and maxima `[row, replicate]` of bootstrap replicates: sequences drawn with replacement."""
        weights = self._draw(seed, replicates)
        peaks = np.stack([self.top[:, w > 0].max(1) for w in weights.T], axis=1)
        return _ratio(self.total @ weights, self.count @ weights), _finite(peaks)

    def interval(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % bootstrap interval of each mean; NaN with a single sequence."""
        if self.total.shape[1] < 2:
            return (np.full(len(self.keys), np.nan),) * 2
        weights = self._draw(seed, REPLICATES)
        return quantiles(_ratio(self.total @ weights, self.count @ weights))

    def _draw(self, seed: int, replicates: int) -> np.ndarray:
        """How often each sequence is drawn, `[sequence, replicate]`."""
        n = self.total.shape[1]
        return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), replicates).T.astype(float)

    def columns(self, seed: int) -> Mapping[str, np.ndarray]:
        """The statistics columns of a table."""
        n = self.count.sum(1)
        mean = self.mean()
        variance = _ratio(self.squares.sum(1), n) - mean**2
        low, high = self.interval(seed)
        return {
            "value": mean,
            "low": low,
            "high": high,
            "std": np.sqrt(np.maximum(variance, 0.0)),
            "p95": _p95(self.sample),
            "max": self.peak(),
            "tokens": n.astype(int),
            "nonfinite": self.nonfinite.sum(1).astype(int),
        }


def quantiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval over the last axis; NaN where no replicate is defined."""
    undefined = np.isnan(replicates)
    if not undefined.any():  # nanquantile works row by row in Python
        low, high = np.quantile(replicates, [0.025, 0.975], axis=-1)
        return low, high
    empty = undefined.all(-1)
    low, high = np.nanquantile(np.where(empty[..., None], 0.0, replicates), [0.025, 0.975], axis=-1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def _p95(sample: np.ndarray) -> np.ndarray:
    if not sample.shape[1]:
        return np.full(len(sample), np.nan)
    if not np.isnan(sample).any():
        return np.quantile(sample, 0.95, axis=1)
    empty = np.isnan(sample).all(1)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty[:, None], 0.0, sample), 0.95, axis=1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan, dtype=float), where=b > 0)


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan)
