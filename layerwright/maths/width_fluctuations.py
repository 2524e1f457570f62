"""How far networks of a finite width are from the infinitely wide one: how much they differ from draw to draw.

Of a layer of n units with mean square m, K = E m is what infinite width keeps. What a width adds is the covariance V/n
of two units' squares, the four-point vertex: over K² it is by how much m differs from network to network, relative to
its mean, beyond n independent Gaussians. It grows by ν/n a layer at criticality: depth over width decides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.criticality import Critical
from layerwright.maths.hermite import hermite_coefficients, mean_square

# Hermite coefficients of φ² that a stream is followed in; those of z|z| have all but 1e-5 of their squares there.
_TERMS = 64
# Stands for K = 0, where averages are taken in the limit.
_LEAST = 1e-6
_GROUPS = 20


class Block(NamedTuple):
    """A layer z ← γz + W φ(z) + b, or one with a linear map of its own before φ, z ← γz + W φ(W₁ z) + b.

    Attributes:
        weight: C_W, variance of an entry of W times the number of its inputs.
        bias: C_b.
        skip: γ, from 0 (no residual stream) to below 1.
        inner: width of W₁ z over that of z, with weights of variance 1 / inputs; None where there is no W₁.
    """

    weight: float
    bias: float = 0.0
    skip: float = 0.0
    inner: float | None = None


class Growth(NamedTuple):
    """What a layer adds to n V/K² far up at criticality.

    Attributes:
        total: ν.
        memory: the part of it that comes of a stream that still knows the sign and the size of its units.
    """

    total: float
    memory: float


class Drawn(NamedTuple):
    """Networks drawn at random.

    Attributes:
        variance: K by layer, `[depth + 1]`, float64.
        excess: n V/K² by layer.
        layers: first and last of the layers that ν is taken from: the last half of those with V/(nK²) below 1/2, as
            beyond it a few networks make up the average.
        growth: ν.
        error: its standard error.
    """

    variance: Tensor
    excess: Tensor
    layers: tuple[int, int]
    growth: float
    error: float


def critical_block(at: Critical, skip: float = 0.0, inner: float | None = None) -> Block:
    """The block that keeps signal and gradient, of an activation with this critical point: K* is the same.

        C_W = (1 − γ²) C_W*,   C_b = (1 − γ²) C_b*

    Example:
        >>> critical_block(Critical(1.0, 2.0, 0.5), skip=0.5)
        Block(weight=1.5, bias=0.375, skip=0.5, inner=None)
    """
    return Block((1 - skip**2) * at.weight, (1 - skip**2) * at.bias, skip, inner)


def growth(phi: Activation, block: Block, at: Critical) -> Growth:
    """ν of a critical block, to first order in 1/n.

        ν = 2 (1 − γ⁴) + C_W²/K² Σ_{k≠0,2} a_k² (1 + γᵏ) / (1 − γᵏ),   a_k = E φ(√K z)² h_k(z)

    and with a linear map of its own, which forgets, ν = 2 (1 − γ⁴) + C_W² (E φ⁴ − (E φ²)²) / (K² inner). Where K* is 0,
    K falls as 1/l and with it what was added before: a third is left. The formula without γᵏ in the numerator and the
    denominator is the paper's: it takes φ² of a layer to be independent of that of the layer before. Signs of units
    persist along a stream, so that of relu this is far too small (derived here, and checked by drawing networks).

    Example:
        >>> from layerwright.maths.activation import activation
        >>> from layerwright.maths.criticality import critical
        >>> relu = activation("relu")
        >>> at = critical(relu)
        >>> [round(growth(relu, critical_block(at, g), at).total, 2) for g in (0.0, 0.9**0.5)]
        [5.0, 1.4]

    Reference: arXiv 2106.10165.
    """
    k = 1.0 if math.isnan(at.variance) else max(at.variance, _LEAST)
    fed = _fed(phi, k)
    share = (block.weight / k) ** 2
    if block.inner is None:
        decay = block.skip ** torch.arange(1.0, _TERMS, dtype=torch.float64)
        memory = share * float((fed.coefficients[1:].square() * 2 * decay / (1 - decay)).sum())
        added = share * fed.rest + memory
    else:
        memory, added = 0.0, share * fed.spread / block.inner
    left = 1 / 3 if at.variance == 0 else 1.0
    return Growth(left * (2 * (1 - block.skip**4) + added), left * memory)


def expected(phi: Activation, block: Block, start: float, depth: int) -> tuple[Tensor, Tensor]:
    """K and n V/K² by layer, `[depth + 1]` each, float64: to first order in 1/n, at any variances and from any start.

    With U = n Var m = V + 2K², and Q_k the covariance of m with the layer's mean of h_k(z/√K), times n,

        K' = γ² K + S,   S = C_W E φ² + C_b,   χ = γ² + C_W d/dK E φ²,   ρ = γ √(K/K')
        U' = χ² U + 2 χ C_W Σ a_k Q_k + C_W² Σ a_k² + 4 γ² K S + 2 S²,   Q_k' = ρᵏ (χ Q_k + C_W a_k),   k ≠ 0, 2

    (derived here; without a stream it is the paper's recursion).

    Args:
        phi: φ.
        block: every layer.
        start: K of the first layer, whose units are independent Gaussians.
        depth: layers after it.

    Returns:
        rows of NaN from where K leaves what can be computed.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> expected(activation("relu"), Block(2.0), 1.0, 3)[1]
        tensor([ 0.,  5., 10., 15.], dtype=torch.float64)

    Reference: arXiv 2106.10165.
    """
    rows = torch.full((2, depth + 1), math.nan, dtype=torch.float64)
    orders = torch.arange(_TERMS, dtype=torch.float64)
    k, total, shared = start, 2 * start**2, torch.zeros(_TERMS, dtype=torch.float64)
    known, fed = k, _fed(phi, k)
    for layer in range(depth + 1):
        if not _LEAST**8 < k < _LEAST**-8:
            break
        rows[:, layer] = rows.new_tensor([k, total / k**2 - 2])
        if not math.isclose(k, known, rel_tol=1e-12):
            known, fed = k, _fed(phi, k)
        new, chi = block.weight * fed.square + block.bias, block.skip**2 + block.weight * fed.slope
        total = chi**2 * total + 4 * block.skip**2 * k * new + 2 * new**2
        if block.inner is None:
            onward = 2 * chi * block.weight * float(fed.coefficients @ shared)
            total += onward + block.weight**2 * fed.rest
        else:
            total += block.weight**2 * fed.spread / block.inner
        after = block.skip**2 * k + new
        decay = (block.skip * math.sqrt(k / after)) ** orders if after > 0 else torch.zeros_like(orders)
        shared = decay * (chi * shared + block.weight * fed.coefficients)
        k = after
    return rows[0], rows[1]


class _Fed(NamedTuple):
    """Gaussian averages of φ² at variance K."""

    square: float  # E φ²
    slope: float  # its derivative in K
    spread: float  # variance of φ²
    rest: float  # what of it is not along z² − K
    coefficients: Tensor  # a_k, those of k = 0 and 2 put to 0


def _fed(phi: Activation, k: float) -> _Fed:
    def squared(x: Tensor) -> Tensor:
        return phi.function(x).square()

    at = torch.tensor(k, dtype=torch.float64)
    square, slope = float(phi.diagonal(k)), float(phi.diagonal_slope(k))
    spread = float(mean_square(squared, at, phi.kinks)) - square**2
    found = hermite_coefficients(squared, at, _TERMS, phi.kinks)
    found[[0, 2]] = 0.0
    return _Fed(square, slope, spread, max(spread - 2 * (k * slope) ** 2, 0.0), found)


def draw(phi: Activation, block: Block, start: float, width: int, depth: int, nets: int = 2000, seed: int = 0) -> Drawn:
    """Draw networks, and measure K, n V/K² and ν.

    Given a layer, the next one's W φ(z) + b is exactly n independent Gaussians of variance C_W mean φ² + C_b: no weight
    is ever drawn. V/n is the covariance of two units' squares, without bias by their mean and their fourth powers.

    Args:
        phi: φ.
        block: every layer.
        start: K of the first layer.
        width: n, from 2 on.
        depth: layers after the first, from 2 on.
        nets: networks, from 40 on; their standard error is that of leaving out a twentieth.
        seed: of the draw.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> found = draw(activation("relu"), Block(2.0), 1.0, width=64, depth=6)
        >>> abs(found.growth - 5) < 4 * found.error
        True
    """
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(_GROUPS, depth + 1, 4, dtype=torch.float64)
    for group in sums:
        z = math.sqrt(start) * _normal(nets // _GROUPS, width, generator)
        for layer in range(depth + 1):
            if layer:
                z = _next(phi, block, z, generator)
            square = z.square()
            m = square.mean(1)
            group[layer] = torch.stack([torch.ones_like(m), m, m.square(), square.square().mean(1)]).sum(1)
    k, excess = _moments(sums.sum(0), width)
    told = (excess > width / 2).nonzero().flatten().tolist()
    last = max(2, told[0] - 1 if told else depth)
    layers = (last // 2, last)
    left_out = [_slope(_moments(sums.sum(0) - part, width)[1], width, layers) for part in sums]
    error = math.sqrt((_GROUPS - 1) * torch.tensor(left_out, dtype=torch.float64).var(correction=0))
    return Drawn(k, excess, layers, _slope(excess, width, layers), error)


def _next(phi: Activation, block: Block, z: Tensor, generator: torch.Generator) -> Tensor:
    read = z
    if block.inner is not None:
        read = z.square().mean(1, keepdim=True).sqrt() * _normal(len(z), round(block.inner * z.shape[1]), generator)
    variance = block.weight * phi.function(read).square().mean(1, keepdim=True) + block.bias
    return block.skip * z + variance.sqrt() * _normal(len(z), z.shape[1], generator)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _moments(sums: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """K and n V/K² by layer, of sums over networks of 1, m, m² and the mean of z⁴."""
    count, m, square, fourth = sums.unbind(-1)
    k = m / count
    spread = (square - count * k.square()) / (count - 1)
    shared = (width * spread - (fourth / count - k.square())) / (width - 1)
    return k, width * shared / k.square()


def _slope(excess: Tensor, width: int, layers: tuple[int, int]) -> float:
    """ν between these layers, of V/(nK²) + 1 that grows by a factor 1 + ν/n a layer."""
    first, last = layers
    factor = float((1 + excess[last] / width) / (1 + excess[first] / width))
    return width * (factor ** (1 / (last - first)) - 1) if factor > 0 else math.nan


def best_depth_over_width(nu: float, outputs: int) -> float:
    """Depth over width r at which half of the outputs say most about the other half, 4 / ((20 + 3 n_out) ν).

    Outputs share a random scale, whose square has the variance s = νr relative to its mean. To third order in s their
    halves have the mutual information (derived here, and equal to the paper's as others have written it down)

        n_out²/32 s² − n_out² (20 + 3 n_out)/192 s³

    Example:
        >>> best_depth_over_width(5.0, 10)
        0.016

    Reference: arXiv 2106.10165.
    """
    return 4 / ((20 + 3 * outputs) * nu)
