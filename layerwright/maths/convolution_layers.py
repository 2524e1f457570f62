"""Layers of convolutional towers as their infinite width sees them: what they make of covariances position by position.

Two positions, p of one image and p + Δ of another, stay Δ apart in a convolution of stride 1: covariances of one Δ for
all p are a chain that meets no other. Its numbers are `[h, w, v, I, J]`: images I × J at positions h × w. Either v = 1,
or the chain holds every horizontal Δ: w and v are the columns of the first and of the second position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.pair_averages import averages, diagonal, features

# What a layer knows of each position, for the first and for the second images of the pairs.
Sides = Iterator[tuple[Tensor, Tensor]]


class Chain(NamedTuple):
    """The kernels of some pairs of images at positions a fixed Δ apart.

    Attributes:
        nngp: covariances of units, `[h, w, v, I, J]`.
        ntk: tangent kernels, `[1, h, w, v, I, J]`, or one for each convolution, `[convolutions, h, w, v, I, J]`.
        same: whether the images of a pair are equal, `[I, J]`, where Δ = 0 is in the chain; else None.
        by_layer: whether each convolution has a tangent kernel of its own.
    """

    nngp: Tensor
    ntk: Tensor
    same: Tensor | None
    by_layer: bool

    def one(self) -> Tensor | None:
        """Where both positions of both images are one, broadcast; None where that is nowhere."""
        width, across = self.nngp.shape[1:3]
        if self.same is None or across == 1:
            return self.same
        return torch.eye(width, dtype=torch.bool, device=self.same.device)[..., None, None] & self.same


class Layer(Protocol):
    """A layer: what it makes of variances, `[h, w, 1, 1, N]`, and of covariances.

    `variances` appends to `sites` what `covariances` needs of each position, `[features, h, w, N]`, and the latter
    takes it for both sides of its pairs in the same order.
    """

    def variances(self, q: Tensor, sites: list[Tensor]) -> Tensor: ...  # noqa: D102

    def covariances(self, chain: Chain, sides: Sides) -> Chain: ...  # noqa: D102


@dataclass(frozen=True)
class Convolution:
    """A convolution of stride 1, its filters square, in NTK parametrisation.

        K(p, p′) ← C_W / s² Σ_d K(p + d, p′ + d) + C_b,   T ← K + C_W / s² Σ_d T(p + d, p′ + d)   (the new K)

    Attributes:
        size: s, the sides of a filter.
        weight_variance: C_W, over inputs times s².
        bias_variance: C_b.
        padding: "same" (with zeros), "valid" (none) or "circular".
    """

    size: int
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    padding: str = "same"

    def variances(self, q: Tensor, sites: list[Tensor]) -> Tensor:
        """Those of its units: fewer by s − 1 along h and w where nothing is padded.

        Raises:
            ValueError: as in `output_shape`.
        """
        output_shape((q.shape[0], q.shape[1]), self.size, self.padding)
        return self._apply(self.bias_variance, q)

    def covariances(self, chain: Chain, sides: Sides) -> Chain:
        """The same of a chain."""
        nngp = self._apply(self.bias_variance, chain.nngp)
        if not len(chain.ntk):
            ntk = nngp[None]
        elif chain.by_layer:
            ntk = torch.cat([self._apply(0.0, chain.ntk), nngp[None]])
        else:
            ntk = self._apply(nngp, chain.ntk)
        return chain._replace(nngp=nngp, ntk=ntk)

    def _apply(self, start: Tensor | float, x: Tensor) -> Tensor:
        return add_windows(start, x, self.size, self.padding, self.weight_variance / self.size**2)


@dataclass(frozen=True)
class Nonlinearity:
    """An activation on Gaussian units: K ← E φ(u) φ(v), T ← T · E φ′(u) φ′(v).

    Attributes:
        phi: φ.
    """

    phi: Activation

    def variances(self, q: Tensor, sites: list[Tensor]) -> Tensor:
        """E φ(u)²."""
        sites.append(features(self.phi, q).flatten(-3))
        return self.phi.diagonal(q)

    def covariances(self, chain: Chain, sides: Sides) -> Chain:
        """Both averages, exact where u and v are one."""
        first, second = next(sides)
        nngp, slope = averages(self.phi, first, chain.nngp, second)
        if (one := chain.one()) is not None:
            exact, exact_slope = diagonal(self.phi, first)
            nngp, slope = torch.where(one, exact, nngp), torch.where(one, exact_slope, slope)
        # In memory that is at hand, where there is one kernel and the slope no single number.
        alone = len(chain.ntk) == 1 and slope.is_contiguous()
        return chain._replace(nngp=nngp, ntk=slope.mul_(chain.ntk[0])[None] if alone else chain.ntk * slope)


@dataclass(frozen=True)
class Normalization:
    """RMSNorm over channels at each position, without weights: K ← K / √((q₁ + ε)(q₂ + ε)), T likewise.

    Attributes:
        eps: ε.
    """

    eps: float

    def variances(self, q: Tensor, sites: list[Tensor]) -> Tensor:
        """Return q / (q + ε)."""
        sites.append((q + self.eps).rsqrt().flatten(-3)[None])
        return q / (q + self.eps)

    def covariances(self, chain: Chain, sides: Sides) -> Chain:
        """Both kernels times the scales of both positions."""
        first, second = next(sides)
        scale = first[0] * second[0]
        return chain._replace(nngp=chain.nngp * scale, ntk=chain.ntk * scale)


@dataclass(frozen=True)
class Branch:
    """x + r · branch(x): K ← K + r² K_branch, T likewise.

    Attributes:
        layers: the branch, which ends in a convolution.
        scale: r.
    """

    layers: Sequence[Layer]
    scale: float

    def variances(self, q: Tensor, sites: list[Tensor]) -> Tensor:
        """The sum of both variances."""
        return q + self.scale**2 * variances(self.layers, q, sites)

    def covariances(self, chain: Chain, sides: Sides) -> Chain:
        """The sum of both kernels, the branch's own layers after those before it."""
        end = covariances(self.layers, chain, sides)
        ntk = self.scale**2 * end.ntk
        ntk[: len(chain.ntk)] += chain.ntk
        return chain._replace(nngp=torch.add(chain.nngp, end.nngp, alpha=self.scale**2), ntk=ntk)


def wraps(layers: Sequence[Layer]) -> bool:
    """Whether convolutions go around the border of their images.

    Raises:
        ValueError: some do, and others do not: positions then have no fixed displacement.

    Example:
        >>> wraps([Convolution(3, padding="circular"), Convolution(1)])
        True
    """
    found = set(_wrapping(layers))
    if len(found) > 1:
        raise ValueError(
            "got convolutions of which some are circular and others not; expected one kind of border: take the same "
            "padding for all"
        )
    return found == {True}


def _wrapping(layers: Sequence[Layer]) -> Iterator[bool]:
    for layer in layers:
        if isinstance(layer, Branch):
            yield from _wrapping(layer.layers)
        elif isinstance(layer, Convolution) and layer.size > 1:
            yield layer.padding == "circular"


def variances(layers: Sequence[Layer], q: Tensor, sites: list[Tensor]) -> Tensor:
    """What layers make of variances, one after another."""
    for layer in layers:
        q = layer.variances(q, sites)
    return q


def covariances(layers: Sequence[Layer], chain: Chain, sides: Sides) -> Chain:
    """What layers make of a chain, one after another."""
    for layer in layers:
        chain = layer.covariances(chain, sides)
    return chain


def output_shape(shape: Sequence[int], size: int, padding: str) -> tuple[int, ...]:
    """Rows and columns of what a convolution gives.

    Raises:
        ValueError: the images are smaller than its filters.

    Example:
        >>> output_shape((8, 6), 3, "valid"), output_shape((8, 6), 3, "same")
        ((6, 4), (8, 6))
    """
    if size > min(shape):
        raise ValueError(
            f"got images of {'×'.join(map(str, shape))} pixels at a filter of {size}×{size}; expected images at least "
            "as large: take smaller filters, or fewer with padding='valid'"
        )
    return tuple(n - size + 1 if padding == "valid" else n for n in shape)


def add_windows(start: Tensor | float, x: Tensor, size: int, padding: str, scale: float) -> Tensor:
    """A start, and a scale times the sums over windows of `[…, h, w, v, I, J]`.

    Windows move along h, and along w, or w and v together where v is not 1.

    Example:
        >>> add_windows(10.0, torch.arange(3.0).reshape(1, 3, 1, 1, 1), 3, "same", 2.0).flatten()
        tensor([12., 16., 16.])
    """
    if size == 1:
        return _plus(start, x, scale)
    down = _slide(0.0, x, size, padding, (-5,), scale)
    return _slide(start, down, size, padding, (-4,) if x.shape[-3] == 1 else (-4, -3), 1.0)


def _slide(start: Tensor | float, x: Tensor, size: int, padding: str, axes: tuple[int, ...], scale: float) -> Tensor:
    """A start, and a scale times Σ_d x(p + d), p along all axes at once."""
    before, after = (size - 1) // 2, size // 2
    if padding == "same":
        n, total = x.shape[axes[0]], _plus(start, x, scale)
        for d in range(1, min(after, n - 1) + 1):
            _part(total, axes, 0, n - d).add_(_part(x, axes, d, n - d), alpha=scale)
        for d in range(1, min(before, n - 1) + 1):
            _part(total, axes, d, n - d).add_(_part(x, axes, 0, n - d), alpha=scale)
        return total
    if padding == "circular":
        for axis in axes:
            n = x.shape[axis]
            x = torch.cat([x.narrow(axis, n - before, before), x, x.narrow(axis, 0, after)], axis)
    n = x.shape[axes[0]] - size + 1
    total = _plus(start, _part(x, axes, 0, n), scale)
    for d in range(1, size):
        total.add_(_part(x, axes, d, n), alpha=scale)
    return total


def _plus(start: Tensor | float, x: Tensor, scale: float) -> Tensor:
    """A start + scale · x, in one pass where the start is a tensor or 0."""
    if isinstance(start, Tensor):
        return torch.add(start, x, alpha=scale)
    found = x * scale
    return found.add_(start) if start else found


def _part(x: Tensor, axes: tuple[int, ...], start: int, length: int) -> Tensor:
    for axis in axes:
        x = x.narrow(axis, start, length)
    return x
