"""Kernels of infinitely wide convolutional towers, read out position by position or by the mean over all positions.

A readout that keeps positions apart asks for pairs of the same position only. The mean over positions asks for all
pairs: a sum over displacements Δ of chains that never meet (`convolution_layers`), each as large as an image, so that
memory grows as positions and not as their square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths import kernel
from layerwright.maths.convolution_layers import Chain, Layer, covariances, variances, wraps
from layerwright.maths.displacements import Displacement, bands, singles, stratified
from layerwright.maths.freed import keep_freed
from layerwright.maths.kernel import State
from layerwright.maths.threads import on_threads

# Bytes of the pairs of positions worked on at once: so few that they stay near a core, so many that calls of torch cost
# little beside what they do; but never fewer images than fill a vector.
_BYTES, _VECTOR = 2**21, 16
# A band of displacements holds h · w² numbers of a pair of images: above this, one displacement at a time.
_BAND = 2**18


def flattened(layers: Sequence[Layer], x: Tensor, x2: Tensor | None = None, by_layer: bool = False) -> State:
    """The kernels where a readout keeps positions apart: the mean over positions of K(p, p), and of T(p, p).

    Args:
        layers: from the images on.
        x: first images, `[N, C, H, W]`, floating.
        x2: second images, `[M, C, H, W]`; left out, the first.
        by_layer: whether to keep the tangent kernel of each convolution apart.

    Returns:
        the kernels, exact where two images are equal.

    Raises:
        ValueError: (as in all of this file) images smaller than a filter, or padding of two kinds.

    Example:
        >>> from layerwright.maths.convolution_layers import Convolution
        >>> flattened([Convolution(1)], torch.eye(2).reshape(1, 1, 2, 2)).ntk  # x² at two positions of four
        tensor([[0.5000]])
    """
    run = _Run.of(layers, x, x2, by_layer)
    total = run.matrix(Displacement(0, 0, mirrored=False)) / math.prod(run.shape)
    return run.kernels(total, *(side.variances.flatten(0, 1).mean(0) for side in (run.first, run.second)))


def pooled(layers: Sequence[Layer], x: Tensor, x2: Tensor | None = None, by_layer: bool = False) -> State:
    """The kernels where a readout takes the mean over positions: the mean of K(p, p′) over all pairs of them.

    Args:
        layers: from the images on.
        x: first images, `[N, C, H, W]`, floating.
        x2: second images, `[M, C, H, W]`; left out, the first.
        by_layer: whether to keep the tangent kernel of each convolution apart.

    Example:
        >>> from layerwright.maths.convolution_layers import Convolution
        >>> pooled([Convolution(1)], torch.eye(2).reshape(1, 1, 2, 2)).ntk  # (mean of x)²
        tensor([[0.2500]])

    Reference: arXiv 1904.11955.
    """
    run = _Run.of(layers, x, x2, by_layer)
    height, width = run.shape
    every = (bands if math.prod(x.shape[2:]) * x.shape[3] <= _BAND else singles)(height, width, run.circular)
    (found,) = run.mean(every, torch.ones(1, len(every), dtype=torch.float64))
    return found


class Estimate(NamedTuple):
    """Kernels from a sample of displacements.

    Attributes:
        kernels: estimated without bias.
        halves: estimates from half of the sample; the root mean square of their differences to `kernels` is its
            standard error.
        share: of the work of all displacements.
    """

    kernels: State
    halves: list[State]
    share: float


def sampled(
    layers: Sequence[Layer], x: Tensor, x2: Tensor | None = None, by_layer: bool = False,
    share: float = 0.1, halves: int = 16, seed: int = 0,
) -> Estimate:  # fmt: skip
    """`pooled` from a stratified sample of displacements, the same for all pairs of images.

    Errors are common to all entries, or nearly, where images are alike; an estimated kernel is symmetric, and need not
    be positive.

    Args:
        layers: as in `pooled`.
        x: as there.
        x2: as there.
        by_layer: as there.
        share: of the work; what it comes to is in the result.
        halves: how many half samples: an error from 16 is itself wrong by 18 %.
        seed: of the draw.
    """
    run = _Run.of(layers, x, x2, by_layer)
    sample = stratified(*run.shape, run.circular, share, halves, seed)
    found, *rest = run.mean(sample.drawn, torch.from_numpy(sample.weights))
    return Estimate(found, rest, sample.share)


class _Images(NamedTuple):
    """Some images, and what layers know of each position of them.

    Attributes:
        sites: `[features, h, w, N]` for each layer that asks; the first are the images, over √C.
        variances: of a unit after the last layer, `[h, w, N]`.
    """

    sites: list[Tensor]
    variances: Tensor

    def part(self, start: int, length: int) -> _Images:
        """Some of them."""
        return _Images(
            [site.narrow(-1, start, length) for site in self.sites], self.variances.narrow(-1, start, length)
        )


def _images(layers: Sequence[Layer], x: Tensor) -> _Images:
    pixels = (x / x.shape[1] ** 0.5).permute(1, 2, 3, 0).contiguous()
    sites = [pixels]
    q = variances(layers, pixels.square().sum(0)[:, :, None, None], sites).flatten(-3)
    return _Images(sites, q)


@dataclass(frozen=True)
class _Run:
    """One call: the layers, and the images they see.

    Attributes:
        layers: from the images on.
        first: rows of the kernels.
        second: columns of the kernels; the first object again where there is one set.
        same: where two images are equal, `[N, M]`.
        by_layer: whether convolutions keep their tangent kernels apart.
        circular: whether positions go around the border.
    """

    layers: Sequence[Layer]
    first: _Images
    second: _Images
    same: Tensor
    by_layer: bool
    circular: bool

    @classmethod
    def of(cls, layers: Sequence[Layer], x: Tensor, x2: Tensor | None, by_layer: bool) -> _Run:
        """Prepare both sets of images."""
        keep_freed()
        # Both at once: a series is as long for the one as for the other.
        every = _images(layers, x if x2 is None else torch.cat([x, x2.to(x.dtype)]))
        first, second = (every, every) if x2 is None else (every.part(0, len(x)), every.part(len(x), len(x2)))
        same = kernel.inputs(x.flatten(1), None if x2 is None else x2.flatten(1).to(x.dtype)).same
        return cls(layers, first, second, same, by_layer, wraps(layers))

    @property
    def shape(self) -> tuple[int, int]:
        """Positions of the output."""
        height, width, _ = self.first.variances.shape
        return height, width

    def mean(self, displacements: Sequence[Displacement], weights: Tensor) -> list[State]:
        """The weighted means over all pairs of positions, one for each row of weights."""
        found: list[list[Tensor]] = [[] for _ in weights]
        columns = weights.T / math.prod(self.shape) ** 2
        for parts, column in zip(on_threads(self._parts, displacements), columns):
            for total, weight in zip(found, column.tolist()):
                if not total:
                    total += [torch.zeros_like(part) for part in parts]
                for sum_, part in zip(total, parts):
                    sum_.add_(part, alpha=weight)
        return [self.kernels(total[0], *(total[1:] or [total[0][0].diagonal()] * 2)) for total in found]

    def matrix(self, displacement: Displacement) -> Tensor:
        """Sums over the positions of a displacement for all pairs of images, `[kernels, N, M]`, float64."""
        n, m = self.same.shape
        sides = self._meet(self.first, self.second, displacement)
        pairs = _at_once(sides)
        columns = min(m, max(_VECTOR, pairs))
        rows = max(1, pairs // columns)
        # A displacement that is its own mirror says of (j, i) what it says of (i, j).
        half = self.first is self.second and not displacement.mirrored
        found: Tensor | None = None
        for i in range(0, n, rows):
            for j in range(i if half else 0, m, columns):
                down, across = slice(i, i + rows), slice(j, j + columns)
                same = self.same[down, across] if displacement.holds_zero else None
                sums = self._sums([(a[..., down, :], b[..., across]) for a, b in sides], same)
                found = sums.new_zeros(len(sums), n, m) if found is None else found
                found[:, down, across] = sums
        assert found is not None
        return found.triu() + found.triu(1).mT if half else found

    def kernels(self, found: Tensor, q1: Tensor, q2: Tensor) -> State:
        """From `[kernels, N, M]`, covariances first."""
        q1, q2, found = (part.to(self.first.variances.dtype) for part in (q1, q2, found))
        nngp, ntk = torch.where(self.same, q1[:, None], found[0]), found[1:]
        return State(q1, q2, nngp, ntk if self.by_layer else ntk.sum(0), self.same)

    def _parts(self, displacement: Displacement) -> list[Tensor]:
        """What a displacement adds: for all pairs, and where there are two sets, for their images with themselves."""
        sets = [] if self.first is self.second else [self.first, self.second]
        return [self._both(displacement), *(self._itself(side, displacement) for side in sets)]

    def _both(self, displacement: Displacement) -> Tensor:
        """`matrix` with that of −Δ."""
        found = self.matrix(displacement)
        if not displacement.mirrored:
            return found
        return found + (found.mT if self.first is self.second else self.matrix(displacement.mirror))

    def _itself(self, side: _Images, displacement: Displacement) -> Tensor:
        """The covariances of `_both` for images with themselves, `[N]`."""
        sides = [(a.mT, b) for a, b in self._meet(side, side, displacement)]
        same = self.same.new_ones(1, 1) if displacement.holds_zero else None
        step = max(_VECTOR, _at_once(sides))
        parts = [
            self._sums([(a[..., k : k + step], b[..., k : k + step]) for a, b in sides], same)[0, 0]
            for k in range(0, side.variances.shape[-1], step)
        ]
        return torch.cat(parts) * (1 + displacement.mirrored)

    def _sums(self, sides: list[tuple[Tensor, Tensor]], same: Tensor | None) -> Tensor:
        """Sums over positions of what layers make of some images, `[kernels, I, J]`, float64."""
        (pixels, others), *known = sides
        nngp = torch.einsum("c...,c...->...", pixels, others).contiguous()
        if nngp.shape[2] > 1:
            # One row of numbers for each position: the inner loops are as long as there are pairs of images.
            shape = nngp.shape[-2:]
            known = [(a.expand(*a.shape[:-2], *shape).contiguous(), b.expand(*b.shape[:-2], *shape).contiguous())
                     for a, b in known]  # fmt: skip
        chain = Chain(nngp, nngp.new_zeros(0, *nngp.shape), same, self.by_layer)
        end = covariances(self.layers, chain, iter(known))
        return torch.stack([part.sum((0, 1, 2), dtype=torch.float64) for part in (end.nngp, *end.ntk)])

    def _meet(self, first: _Images, second: _Images, displacement: Displacement) -> list[tuple[Tensor, Tensor]]:
        """At each site the positions of the first images and those Δ further in the second.

        Returns:
            `[features, h, w, 1, N, 1]` and `[features, h, 1, v, 1, M]`, or v instead of w where Δ is one.
        """
        down, across = displacement.down, displacement.across
        shifts = [(1, down)] + ([] if across is None else [(2, across)])
        found = []
        for a, b in zip(first.sites, second.sites):
            if self.circular:
                b = b.roll([-d for _, d in shifts], [axis for axis, _ in shifts])
            else:
                for axis, d in shifts:
                    n = a.shape[axis] - abs(d)
                    a, b = a.narrow(axis, max(0, -d), n), b.narrow(axis, max(0, d), n)
            found.append((a.unsqueeze(3).unsqueeze(5), b.unsqueeze(2 if across is None else 3).unsqueeze(4)))
        return found


def _at_once(sides: list[tuple[Tensor, Tensor]]) -> int:
    """Pairs of images to work on at once, from the pairs of their positions where these are the most."""
    positions = max(torch.broadcast_shapes(a.shape[1:4], b.shape[1:4]).numel() for a, b in sides)
    return _BYTES // (positions * sides[0][0].itemsize)
