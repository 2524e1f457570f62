"""From one number a token to a mean, a spread and a bootstrap interval over sequences, in one pass.

Only sums a sequence are kept, and a thinned sample of the tokens for the quantile, so that memory does not grow with
the number of tokens, and splitting the batches differently changes nothing beyond rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Key = tuple[Hashable, ...]
REPLICATES = 1000
_SAMPLE = 4096


class Reducer:
    """Statistics of one measure: rows named by keys, filled batch by batch.

    A pass over the data gives all rows of a batch at once, a walk over the blocks the rows of one block for all
    batches. Rows that come together form a group; in the end every group must have seen the same sequences.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._pending: dict[Key, tuple[Tensor, Tensor | None]] = {}
        self.groups: dict[tuple[Key, ...], Group] = {}

    def add(self, key: Key, values: Tensor, where: Tensor | None = None) -> None:
        """Numbers of one row for the current batch: `[batch]` or `[batch, token]`, or one number.

        `where` narrows the tokens that count for this row.
        """
        self._pending[key] = values.reshape(len(values) if values.ndim else 1, -1), where

    def close_batch(self, mask: Tensor | None) -> None:
        """Reduce what was added since the last call; `mask` `[batch, token]` says which tokens count."""
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        values = torch.stack([v.detach() for v, _ in pending.values()]).float()
        base = torch.ones_like(values[0], dtype=torch.bool) if mask is None else mask.to(values.device)
        counted = torch.stack([base if where is None else base & where for _, where in pending.values()])
        self.groups.setdefault(tuple(pending), Group()).add(values, base, counted)

    def merge(self, keys: tuple[Key, ...], group: Group) -> None:
        """Take in a group: other rows than those here, or further sequences of the same rows."""
        if keys in self.groups:
            self.groups[keys].extend(group)
        else:
            self.groups[keys] = group

    def finish(self) -> Reduced:
        """Everything reduced."""
        keys = [key for group in self.groups for key in group]
        sums = [group.sums for group in self.groups.values()]
        if len({s.shape[-1] for s in sums}) > 1 or len(set(keys)) < len(keys):
            raise RuntimeError("a batch gave other rows than the first one")
        found = np.concatenate(sums, axis=1) if sums else np.zeros((5, 0, 0))
        # Measures that look at the first sequences only say nothing of the rest, or that these do not count.
        seen = np.flatnonzero(found[2:4].any((0, 1)))
        total, squares, count, nonfinite, top = found[..., : seen[-1] + 1] if len(seen) else found
        samples = [group.sample for group in self.groups.values()]
        sample = np.concatenate(samples) if samples else np.empty((0, 0), dtype=np.float32)
        return Reduced(keys, total, squares, count, nonfinite, top, sample)


@dataclass
class Group:
    """Rows that are reduced together: their sums by sequence, and every `stride`-th of the tokens seen so far."""

    pieces: list[np.ndarray] = field(default_factory=list)
    sample: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    stride: int = 1
    seen: int = 0

    @property
    def sums(self) -> np.ndarray:
        """Sum, sum of squares, tokens, non-finite tokens and maximum: `[5, row, sequence]`."""
        return np.concatenate(self.pieces, axis=-1)

    def add(self, values: Tensor, base: Tensor, counted: Tensor) -> None:
        """A batch: numbers `[row, batch, token]`, the tokens of the data, and those that count in each row."""
        finite = values.isfinite()
        used = counted & finite
        x = values.masked_fill(~used, 0.0).double()
        top = values.masked_fill(~used, -torch.inf).amax(-1)
        stats = (x.sum(-1), x.square().sum(-1), used.sum(-1), (counted & ~finite).sum(-1), top)
        self.pieces.append(torch.stack([s.double().cpu() for s in stats]).numpy())
        kept = base.flatten().nonzero().flatten()[self._next :: self.stride]
        tokens = values.flatten(1)[:, kept].masked_fill(~used.flatten(1)[:, kept], torch.nan)
        self._keep(tokens.cpu().numpy(), int(base.sum()))

    def extend(self, other: Group) -> None:
        """Further sequences of the same rows, from a group that kept every token (or every `stride`-th).

        The sample is that of one pass, wherever the tokens before are a multiple of the other's stride.
        """
        self.pieces.append(other.sums)
        if other.stride > self.stride:
            self.sample = self.sample[:, :: other.stride // self.stride]
            self.stride = other.stride
        start, step = -(-self._next // other.stride), self.stride // other.stride
        self._keep(other.sample[:, start::step], other.seen)

    @property
    def _next(self) -> int:
        """How many tokens to pass over until the next one that is kept."""
        return -self.seen % self.stride

    def _keep(self, tokens: np.ndarray, seen: int) -> None:
        """Add thinned tokens; the stride doubles whenever the sample is full."""
        self.seen += seen
        self.sample = tokens if self.sample.size == 0 else np.concatenate([self.sample, tokens], axis=1)
        while self.sample.shape[1] > _SAMPLE:
            self.sample = self.sample[:, ::2]
            self.stride *= 2


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
