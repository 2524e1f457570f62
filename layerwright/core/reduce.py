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
        if not self._sums:
            return Reduced([], *(np.zeros((0, 0)) for _ in range(5)), np.zeros((0, 0)))
        return Reduced(self.keys, *np.concatenate(self._sums, axis=-1), self._sample)


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
        n = self.total.shape[1]
        draws = np.random.default_rng(seed).integers(0, n, (replicates, n))
        weights = np.stack([np.bincount(d, minlength=n) for d in draws], axis=1).astype(float)
        means = _ratio(self.total @ weights, self.count @ weights)
        tops = np.stack([self.top[:, np.unique(d)].max(1) for d in draws], axis=1)
        return means, _finite(tops)

    def columns(self, seed: int) -> Mapping[str, np.ndarray]:
        """The statistics columns of a table."""
        n = self.count.sum(1)
        mean = self.mean()
        variance = _ratio(self.squares.sum(1), n) - mean**2
        low = high = np.full(len(self.keys), np.nan)
        if self.total.shape[1] > 1:
            means, _ = self.resampled(seed, REPLICATES)
            low, high = quantiles(means)
        return {
            "value": mean,
            "low": low,
            "high": high,
            "std": np.sqrt(np.maximum(variance, 0.0)),
            "p95": _p95(self.sample, n),
            "max": self.peak(),
            "tokens": n.astype(int),
            "nonfinite": self.nonfinite.sum(1).astype(int),
        }


def quantiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval over the last axis; NaN where no replicate is defined."""
    empty = np.isnan(replicates).all(-1)
    filled = np.where(empty[..., None], 0.0, replicates)
    low, high = np.nanquantile(filled, [0.025, 0.975], axis=-1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def _p95(sample: np.ndarray, count: np.ndarray) -> np.ndarray:
    filled = np.where((count == 0)[:, None], 0.0, sample)
    with np.errstate(invalid="ignore"):
        values = np.nanquantile(filled, 0.95, axis=1) if sample.shape[1] else np.full(len(count), np.nan)
    return np.where(count == 0, np.nan, values)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan, dtype=float), where=b > 0)


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan)
