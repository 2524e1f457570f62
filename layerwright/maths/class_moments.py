"""Counts, means and spread of features by class, in one pass over them in any order and any division."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Samples that are added, and classes that are merged, at a time: all that is needed beside the moments is a few copies
# of as many rows, which stay in the processor's cache.
_ROWS = 256


class Classes(NamedTuple):
    """What is known of the K classes seen, as views of where it is kept.

    Attributes:
        labels: their labels, in the order in which they were first seen, `[K]`.
        counts: samples of each, `[K]`.
        means: μ_c, `[K, d]`, float64.
        variances: σ_c² = Σ ‖x − μ_c‖² / n_c, `[K]`, float64; 0 for a class of one sample.
        covariance: Σ_W = Σ (x − μ_c)(x − μ_c)ᵀ / N over all samples, `[d, d]`; None where it was not asked for.
    """

    labels: Tensor
    counts: Tensor
    means: Tensor
    variances: Tensor
    covariance: Tensor | None

    @property
    def within(self) -> float:
        """Tr Σ_W, the mean square distance of a sample from the mean of its class."""
        return float((self.variances * self.counts).sum() / self.counts.sum())


class ClassMoments:
    """Moments of features by class that grow with every batch and merge with those of other data.

    A class gets a row when it is first seen: labels may be sparse, and empty classes take no part. Means and squares
    move together (Welford's update of a batch, Chan's of other moments), so that one pass is enough and a large common
    offset costs no digits. Memory: 8 (K d + d²) bytes for K classes seen and width d, and a few copies of 256 rows;
    nothing of samples × classes.

    Example:
        >>> moments = ClassMoments(10, 1)
        >>> moments.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([7, 7, 2]))
        >>> seen = moments.result()
        >>> seen.labels.tolist(), seen.means.tolist(), seen.variances.tolist()
        ([2, 7], [[5.0], [2.0]], [0.0, 1.0])
    """

    def __init__(self, classes: int, width: int, *, covariance: bool = True, means: Tensor | None = None) -> None:
        """Nothing seen yet.

        Args:
            classes: labels are 0 … classes − 1.
            width: d.
            covariance: whether Σ_W is wanted as a matrix, for d² operations a sample; its trace is always known.
            means: a tensor `[rows, d]` in float64 to keep the means in, on the device of the features. Where K d does
                not fit into memory, one of a file (`torch.from_file(name, shared=True, …)`): a few rows are touched at
                a time.

        Raises:
            ValueError: `means` has another width or precision.
        """
        # Empty rows take no memory before they are written to, so that classes that are never seen cost nothing.
        means = torch.empty(classes, width, dtype=torch.float64) if means is None else means
        if means.ndim != 2 or means.shape[1] != width or means.dtype != torch.float64:
            raise ValueError(f"got means {[*means.shape]} of {means.dtype}; expected [rows, {width}] of torch.float64")
        self.seen = 0
        self._means, self._squares = means, means.new_zeros(len(means))
        self._labels, self._counts = (torch.zeros(len(means), dtype=torch.long, device=means.device) for _ in range(2))
        self._row = torch.full((classes,), -1, device=means.device)
        self._scatter = means.new_zeros(width, width) if covariance else None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples; those with a negative label do not count.

        Args:
            features: x, `[B, d]`.
            labels: class of each, `[B]`.

        Raises:
            ValueError: shapes that do not fit, a label that is no class, a feature that is not finite.
        """
        self._check(features, labels)
        counted = labels >= 0
        if not counted.all():
            features, labels = features[counted], labels[counted]
        for x, y in zip(features.split(_ROWS), labels.split(_ROWS)):
            self._add(x.double(), y)

    def merge(self, other: ClassMoments) -> None:
        """Add what other moments have seen, of classes with the same labels.

        Raises:
            ValueError: they are of another width, or only one of the two keeps Σ_W.
        """
        widths = self._means.shape[1], other._means.shape[1]
        if widths[0] != widths[1] or (self._scatter is None) != (other._scatter is None):
            raise ValueError(
                f"got moments of widths {widths[0]} and {widths[1]}; expected the same, both with Σ_W or without"
            )
        if self._scatter is not None and other._scatter is not None:
            self._scatter += other._scatter
        for part in torch.arange(other.seen, device=self._means.device).split(_ROWS):
            labels, counts, means = other._labels[part], other._counts[part], other._means[part]
            self._meet(means, labels)
            rows = self._row[labels]
            share = counts / (self._counts[rows] + counts).double()
            step = means - self._means[rows]
            spread = step * (self._counts[rows] * share).sqrt()[:, None]
            self._means[rows] += step * share[:, None]
            self._squares[rows] += other._squares[part] + torch.linalg.vecdot(spread, spread)
            self._counts[rows] += counts
            if self._scatter is not None:
                self._scatter.addmm_(spread.mT, spread)

    def rows(self, labels: Tensor) -> Tensor:
        """Row of each of these labels in what `result` gives; -1 for classes that were not seen."""
        return self._row[labels]

    def result(self) -> Classes:
        """What was seen so far.

        Raises:
            ValueError: nothing was.
        """
        if not self.seen:
            raise ValueError("got no sample with a class; expected at least one")
        counts = self._counts[: self.seen]
        scatter = None if self._scatter is None else self._scatter / counts.sum()
        variances = self._squares[: self.seen] / counts
        return Classes(self._labels[: self.seen], counts, self._means[: self.seen], variances, scatter)

    def _add(self, x: Tensor, labels: Tensor) -> None:
        self._meet(x, labels)
        rows = self._row[labels]
        self._counts += rows.bincount(minlength=len(self._counts))
        # Welford: the scatter about the mean grows by Σ (x − old mean)(x − new mean)ᵀ.
        before = x - self._means[rows]
        self._means.index_add_(0, rows, before / self._counts[rows, None])
        after = x - self._means[rows]
        self._squares.index_add_(0, rows, torch.linalg.vecdot(before, after))
        if self._scatter is not None:
            self._scatter.addmm_(before.mT, after)

    def _meet(self, features: Tensor, labels: Tensor) -> None:
        """Give classes a row behind those seen, with their first sample for a mean that no sample has moved yet."""
        unseen = (self._row[labels] < 0).nonzero().flatten()
        new, place = labels[unseen].unique(return_inverse=True)
        end = self.seen + len(new)
        if end > len(self._means):
            raise ValueError(f"got {end} classes; there is room for {len(self._means)}")
        self._row[new] = torch.arange(self.seen, end, device=new.device)
        self._labels[self.seen : end] = new
        first = unseen.new_full((len(new),), len(labels)).scatter_reduce_(0, place, unseen, "amin")
        self._means[self.seen : end] = features[first].double()
        self.seen = end

    def _check(self, features: Tensor, labels: Tensor) -> None:
        width, classes = self._means.shape[1], len(self._row)
        if features.ndim != 2 or features.shape[1] != width or labels.shape != features.shape[:1]:
            raise ValueError(
                f"got features {[*features.shape]} and labels {[*labels.shape]}; expected [samples, {width}] and a "
                "label for each"
            )
        if len(labels) and labels.max() >= classes:
            raise ValueError(f"got label {int(labels.max())}; expected less than {classes}")
        # One sum shows whether all is well, at a fraction of the cost of asking every number.
        if not features.sum().isfinite():
            finite = features.isfinite().all(1) | (labels < 0)
            if finite.all():
                return
            first = int((~finite).nonzero()[0])
            raise ValueError(
                f"{int((~finite).sum())} of {len(finite)} samples are not finite, first sample {first} of class "
                f"{int(labels[first])}"
            )
