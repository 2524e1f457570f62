"""Kernels of networks thousands of layers deep, as functions of the distance.

On a sphere both kernels are functions of ρ alone, whatever the depth: they are taken through the layers once on a table
of distances, as logarithms, and read off for any number of inputs. K is what the kernel of the network as a Gaussian
process is over its diagonal, T the same of the tangent kernel. Where layers drive inputs apart (B′ > 1) the table holds
ln K and ln T, which fall without end; else ln(1 − K) and ln(1 − T), which do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from layerwright.maths.activation import Activation
from layerwright.maths.infinite_depth import NOTHING

_NODES = 2048
# Distances 1 − ρ and correlations ρ that are told apart from 0.
_LEAST = 1e-10
# Below these a power law continues κ(ρ), and 1 − κ(1 − u).
_SMALL, _CLOSE = 1e-6, 1e-9
# Hermite terms at most, and what they may leave out where a closed form is there instead.
_TERMS, _LEFT_OUT = 256, 1e-13
# A logarithm that cannot be doubled much further; from there on the nearest input decides alone.
_ENDLESS = 1e290
_ROUNDING = 1e-18

Curve = Callable[[Tensor], Tensor]


class DeepKernels(NamedTuple):
    """Both kernels after some layers, on a table of distances.

    Attributes:
        depth: layers with an activation.
        apart: whether the logarithms are those of K and T, and not of 1 − K and 1 − T.
        nngp: ln K, or ln(1 − K), by entry of the table.
        ntk: the same of T; None where φ jumps, so that no tangent kernel exists.
        places: ln(u / (1 − u)) of the table's entries, u = 1 − ρ.
    """

    depth: int
    apart: bool
    nngp: Tensor
    ntk: Tensor | None
    places: Tensor

    def at(self, u: np.ndarray, tangent: bool = False) -> np.ndarray:
        """The logarithms at these distances 1 − ρ, `[…]`."""
        values = self.ntk if tangent else self.nngp
        if values is None:
            raise ValueError("got an activation that jumps: it has no tangent kernel")
        low, high = float(self.places[0]), float(self.places[-1])
        with np.errstate(divide="ignore"):
            x = np.clip(np.log(u) - np.log1p(-u), low, high)
        return np.asarray(CubicSpline(self.places.numpy(), values.numpy())(x))


def deep_kernels(phi: Activation, depths: Sequence[int], q: float = 1.0) -> Iterator[DeepKernels]:
    """Both kernels after each of these depths, from one pass.

        K ← κ(K),   T ← (κ(K) + b T κ′(K)) / (1 + b B′),   b the diagonal of T before it is divided, 1 at first

    Args:
        phi: φ, of which κ is the dual on a sphere of variance q.
        depths: rising, from 1 on.
        q: variance of the units.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> one, ten = deep_kernels(activation("hermite:2"), [1, 10])
        >>> np.exp(one.at(np.array([0.5]))).round(9), ten.at(np.array([0.5])).round(3)  # ρ², and ρ^1024
        (array([0.25]), array([-709.783]))

    Reference: arXiv 2204.14126.
    """
    layer = _layer(phi, q)
    apart = layer.top > 1 + NOTHING
    places = torch.linspace(math.log(_LEAST), -math.log(_LEAST), _NODES, dtype=torch.float64)
    wanted = list(depths)
    for depth, (nngp, ntk) in enumerate((_apart if apart else _together)(layer, places), start=1):
        if depth == wanted[0]:
            yield DeepKernels(wanted.pop(0), apart, nngp, ntk, places)
        if not wanted:
            return


class _Layer(NamedTuple):
    """κ and κ′ of a layer; fall u ↦ 1 − κ(1 − u), bend u ↦ B′ − κ′(1 − u), and B′."""

    dual: Curve
    slope: Curve
    fall: Curve
    bend: Curve
    top: float


def _layer(phi: Activation, q: float) -> _Layer:
    """By Mehler's series, in which nothing cancels, or by the closed form of a φ with a kink.

    A series that has to be cut has what is left in its last term, so that κ(1) = 1.
    """
    at = torch.tensor(q, dtype=torch.float64)
    parts = phi.coefficients(at, _TERMS).square() / phi.diagonal(at)
    left = max(1 - float(parts.sum()), 0.0)
    if left > _LEFT_OUT and phi.closed is not None:
        return _closed(phi, at)
    parts[:2] *= parts[:2] > NOTHING
    parts[-1] += left if left > _LEFT_OUT else 0.0
    shares: list[float] = (parts / parts.sum()).tolist()
    while shares[-1] < _ROUNDING:
        shares.pop()
    slopes = [n * share for n, share in enumerate(shares)][1:]
    top = math.inf if phi.derivative is None else sum(slopes)
    return _Layer(_power_series(shares), _power_series(slopes), _falling(shares), _falling(slopes), top)


def _closed(phi: Activation, at: Tensor) -> _Layer:
    form, g = phi.closed, phi.diagonal(at)
    assert form is not None
    gradient = form.dual_derivative
    top = math.inf if gradient is None else float(at * phi.diagonal_derivative(at) / g)

    def dual(rho: Tensor) -> Tensor:
        return form.dual(at, rho * at, at) / g

    def slope(rho: Tensor) -> Tensor:
        assert gradient is not None
        return at * gradient(at, rho * at, at) / g

    return _Layer(dual, slope, lambda u: 1 - dual(1 - u), lambda u: top - slope(1 - u), top)


def _power_series(shares: Sequence[float]) -> Curve:
    """Σ_n s_n ρⁿ."""

    def value(rho: Tensor) -> Tensor:
        total = torch.full_like(rho, shares[-1])
        for share in reversed(shares[:-1]):
            total = total * rho + share
        return total

    return value


def _falling(shares: Sequence[float]) -> Curve:
    """Σ_n s_n (1 − (1 − u)ⁿ), without a difference of near numbers."""

    def value(u: Tensor) -> Tensor:
        total, fallen = torch.zeros_like(u), torch.zeros_like(u)
        for share in shares[1:]:
            fallen = fallen + u * (1 - fallen)
            total = total + share * fallen
        return total

    return value


def _apart(layer: _Layer, places: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The logarithms of K and T, layer by layer."""
    probe = torch.tensor([_SMALL, 2 * _SMALL], dtype=torch.float64)
    power = round(float(layer.dual(probe).log().diff()) / math.log(2))
    value, slope = _in_logs(layer.dual, _SMALL, power), _in_logs(layer.slope, _SMALL, max(power - 1, 0))
    k = torch.nn.functional.logsigmoid(-places)
    t, diagonal = k, 0.0
    while True:
        if -float(k.min()) < _ENDLESS:
            new = value(k)
            if math.isfinite(layer.top):
                t = torch.logaddexp(new, t + slope(k))
                diagonal = float(np.logaddexp(0.0, diagonal + math.log(layer.top)))
            k = new
        yield k, t - diagonal if math.isfinite(layer.top) else None


def _together(layer: _Layer, places: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The logarithms of 1 − K and 1 − T, layer by layer.

    With u = 1 − K, b the diagonal of T and D = b − T of the layer before,

        u ← 1 − κ(1 − u),   D ← 1 − κ(1 − u) + D κ′(1 − u) + b (B′ − κ′(1 − u))
    """
    probe = torch.tensor([_CLOSE, 4 * _CLOSE], dtype=torch.float64)
    # With a kink, κ′ falls from B′ as √u.
    power = round(float(layer.bend(probe).log().nan_to_num(0.0).diff()) / math.log(2)) / 2
    value, bend = _in_logs(layer.fall, _CLOSE, 1), _in_logs(layer.bend, _CLOSE, power)
    u = torch.nn.functional.logsigmoid(places)
    d, diagonal = u, 1.0
    while True:
        new, kept = value(u), layer.slope(1 - u.exp()).log()
        d = torch.logaddexp(torch.logaddexp(new, d + kept), math.log(diagonal) + bend(u))
        diagonal = 1 + diagonal * layer.top
        u = new
        yield u, d - math.log(diagonal)


def _in_logs(curve: Curve, least: float, power: float) -> Curve:
    """The logarithm of f(eˣ), below `least` by the power law that f has there."""
    floor = math.log(least)

    def logs(x: Tensor) -> Tensor:
        inside = x.clamp_min(floor)
        return curve(inside.exp()).log() + power * (x - inside)

    return logs
