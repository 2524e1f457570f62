"""Kernels of infinitely wide towers: what a layer makes of the covariances of its units and of their tangents.

Averages over a layer's units, and over the initial weights, of products for two inputs. A tower is a fold of the maps
below over `inputs`. In NTK parametrisation a weight is N(0, 1) times √(C_W / inputs), a bias N(0, 1) times √C_b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.activation import Activation

__all__ = [
    "ROWS",
    "Kernels",
    "Map",
    "State",
    "add",
    "checked",
    "dense",
    "dropout",
    "inputs",
    "kinds",
    "nonlinear",
    "norm",
]


# Rows of inputs that are read at once.
ROWS = 128


@dataclass(frozen=True)
class Kernels:
    """The two kernels of N inputs against M.

    Attributes:
        q1: mean square of a unit for each first input, `[N]`.
        q2: the same for each second input, `[M]`.
        nngp: covariance of a unit for two inputs, `[N, M]`: the kernel of the network as a Gaussian process, exactly
            q where the two inputs are equal.
        ntk: tangent kernel, the inner product of the gradients of one output by all weights before it, `[N, M]`; or
            `[layers, N, M]`, the part of each dense layer's weights.
    """

    q1: Tensor
    q2: Tensor
    nngp: Tensor
    ntk: Tensor


@dataclass(frozen=True)
class State(Kernels):
    """The kernels of units somewhere in a tower, as maps read them.

    Attributes:
        same: where the two inputs are equal, `[N, M]`.
    """

    same: Tensor

    def averages(self, phi: Activation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E φ(u)² of the first inputs, of the second, and E φ(u) φ(v) and E φ′(u) φ′(v) of their pairs."""
        rows, columns = self.q1[:, None], self.q2[None, :]
        g1, g2 = phi.diagonal(self.q1), phi.diagonal(self.q2)
        dual = self.where_same(g1, phi.dual(rows, self.nngp, columns))
        return g1, g2, dual, phi.dual_derivative(rows, self.nngp, columns)

    def where_same(self, exact: Tensor, values: Tensor) -> Tensor:
        """What is known of each first input, `[N]`, where the inputs are equal, and values `[N, M]` elsewhere."""
        return torch.where(self.same, exact[:, None], values)

    def itself(self) -> Tensor:
        """Where an input meets itself: the diagonal, if both sets of inputs are the same rows in the same order."""
        found = torch.zeros_like(self.same)
        if self.same.shape[0] == self.same.shape[1] and self.same.diagonal().all():
            found.fill_diagonal_(True)
        return found


Map = Callable[[State], State]


def inputs(x: Tensor, x2: Tensor | None = None, by_layer: bool = False) -> State:
    """The kernels of the inputs themselves: X X2ᵀ / d, and no tangents.

    Args:
        x: first inputs, `[N, d]`; whole numbers become float64, floats keep their type.
        x2: second inputs, `[M, d]`; left out, the first.
        by_layer: whether to keep the tangent kernel of each dense layer apart.

    Returns:
        the kernels; equal inputs are found by their numbers, so that their covariance is exact.

    Raises:
        ValueError: not matrices of one width, no row or column, or numbers that are not finite.

    Example:
        >>> inputs(torch.tensor([[1, 1], [1, -1]])).nngp
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    x, y = checked(x, x2)
    first, second = kinds(x, y)
    same = first[:, None] == second[None, :]
    q1, q2 = (rows.square().mean(1) for rows in (x, y))
    ntk = x.new_zeros((0, len(x), len(y)) if by_layer else (len(x), len(y)))
    return State(q1, q2, torch.where(same, q1[:, None], x @ y.T / x.shape[1]), ntk, same)


def checked(x: Tensor, x2: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both inputs of `inputs`, in one floating type, or why they cannot be used."""
    x = _floating(x)
    y = x if x2 is None else _floating(x2).to(x.dtype)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ValueError(f"got inputs {tuple(x.shape)} and {tuple(y.shape)}; expected rows, and the same columns")
    # A sum is quicker, and infinite for large numbers too.
    if not all(rows.sum().isfinite() or rows.isfinite().all() for rows in ((x,) if y is x else (x, y))):
        raise ValueError("got inputs that are NaN or infinite; expected finite numbers: leave those rows out")
    return x, y


def kinds(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each row of both, the same where rows are equal.

    Example:
        >>> kinds(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[2.0, 3.0], [-0.0, 1.0]]))
        (tensor([0, 1], dtype=torch.int32), tensor([1, 0], dtype=torch.int32))
    """
    pieces = [rows for given in ((x,) if y is x else (x, y)) for rows in given.split(ROWS)]
    # Rows of different sums of their numbers as integers, which have no rounding, differ, and mostly that tells all.
    words = _bits(x[:1]).shape[1]
    odd = np.random.default_rng(0).integers(2**16, size=words) * 2 + 1
    sums = np.concatenate([(part := _bits(rows)) @ odd.astype(part.dtype) for rows in pieces])
    differ, kind = np.unique(sums, return_inverse=True)
    if len(differ) < len(sums):
        raw = np.concatenate([_bits(rows) for rows in pieces])
        _, kind = np.unique(raw.view(np.dtype((np.void, raw.shape[1] * raw.itemsize)))[:, 0], return_inverse=True)
    found = torch.from_numpy(kind.astype(np.int32)).to(x.device)
    return (found, found) if y is x else (found[: len(x)], found[len(x) :])


def _bits(rows: Tensor) -> np.ndarray:
    """The bits of numbers as integers, as many at once as a row is full of; −0 is 0."""
    raw = (rows + 0.0).detach().cpu().contiguous().view(torch.uint8).numpy()
    return raw.view(np.uint64 if raw.shape[1] % 8 == 0 else np.uint16 if raw.shape[1] % 4 else np.uint32)


def dense(weight_variance: float = 1.0, bias_variance: float = 0.0) -> Map:
    """A dense layer: its own weights' tangents are what it gives, and those before pass through its weights.

        K ← C_W K + C_b,   T ← K + C_W T   (the new K)

    Args:
        weight_variance: C_W, above 0, over the number of inputs.
        bias_variance: C_b, from 0 on.

    Example:
        >>> dense(2.0, 0.5)(inputs(torch.tensor([[1.0, 1.0]]))).ntk
        tensor([[2.5000]])

    Reference: arXiv 1806.07572.
    """

    def step(k: State) -> State:
        q1, q2, nngp = (weight_variance * part for part in (k.q1, k.q2, k.nngp))
        if bias_variance:
            q1, q2, nngp = (part.add_(bias_variance) for part in (q1, q2, nngp))
        if k.ntk.ndim == 2:
            ntk = torch.add(nngp, k.ntk, alpha=weight_variance)
        else:
            ntk = torch.cat([weight_variance * k.ntk, nngp[None]])
        return replace(k, q1=q1, q2=q2, nngp=nngp, ntk=ntk)

    return step


def nonlinear(phi: Activation) -> Map:
    """An activation on units that are Gaussian: those of a dense layer, of a sum of such, or of one normalised.

        K ← E φ(u) φ(v),   T ← T · E φ′(u) φ′(v),   u, v of covariance K

    Raises:
        ValueError: (by the map) φ jumps, so that no tangent kernel exists, or the kernels overflowed.

    Example:
        >>> from layerwright.maths.activation import activation
        >>> nonlinear(activation("relu"))(dense(2.0)(inputs(torch.tensor([[1.0, 1.0]])))).ntk
        tensor([[1.]])

    Reference: arXiv 1806.07572.
    """

    def step(k: State) -> State:
        g1, g2, dual, slope = k.averages(phi)
        return replace(k, q1=g1, q2=g2, nngp=dual, ntk=k.ntk * slope)

    return step


def norm(eps: float = 1e-5) -> Map:
    """RMSNorm without weights; LayerNorm too after dense layers, as units then have mean 0 over the width.

        K ← K / √((q₁ + ε)(q₂ + ε)),   T likewise

    Args:
        eps: ε, above 0, in units of q.

    Example:
        >>> norm(1.0)(inputs(torch.tensor([[1.0, 1.0]]))).nngp
        tensor([[0.5000]])
    """

    def step(k: State) -> State:
        n1, n2 = k.q1 / (k.q1 + eps), k.q2 / (k.q2 + eps)
        scale = (k.q1 + eps).rsqrt()[:, None] * (k.q2 + eps).rsqrt()
        return replace(k, q1=n1, q2=n2, nngp=k.where_same(n1, k.nngp * scale), ntk=k.ntk * scale)

    return step


def dropout(keep: float) -> Map:
    """Dropout in training, averaged over masks that are independent for any two inputs.

        q ← q / p,   K and T ← theirs / p for an input and itself, else unchanged

    An input and itself are the diagonal where both sets of inputs are the same rows in the same order.

    Args:
        keep: p, the probability to keep a unit, above 0 and up to 1.

    Example:
        >>> dropout(0.5)(inputs(torch.tensor([[1.0], [1.0]]))).nngp
        tensor([[2., 1.],
                [1., 2.]])
    """

    def step(k: State) -> State:
        if keep == 1:
            return k
        itself, q1, q2 = k.itself(), k.q1 / keep, k.q2 / keep
        alone = replace(k, q1=q1, q2=q2, ntk=k.ntk.where(~itself, k.ntk / keep), same=itself)
        return replace(alone, nngp=alone.where_same(q1, k.nngp))

    return step


def add(skip: State, *branches: State, scale: float = 1.0) -> State:
    """What is carried past some branches, and the branches' sum times a scale; each ends in a dense layer of its own.

        K = K_skip + r² Σ K_branch,   T likewise

    Args:
        skip: the state that every branch began with.
        branches: what they made of it.
        scale: r.

    Example:
        >>> x = inputs(torch.tensor([[1.0, 1.0]]))
        >>> add(x, dense(1.0)(x), scale=0.5).nngp
        tensor([[1.2500]])
    """

    def total(first: Tensor, rest: Iterable[Tensor]) -> Tensor:
        return sum((scale**2 * part for part in rest), first)

    q1 = total(skip.q1, (b.q1 for b in branches))
    q2 = total(skip.q2, (b.q2 for b in branches))
    nngp = total(skip.nngp, (b.nngp for b in branches))
    if skip.ntk.ndim == 2:
        ntk = total(skip.ntk, (b.ntk for b in branches))
    else:
        before = len(skip.ntk)
        own = (scale**2 * b.ntk[before:] for b in branches)
        ntk = torch.cat([total(skip.ntk, (b.ntk[:before] for b in branches)), *own])
    # Equal inputs are one no longer where a branch drops other units of each.
    same = reduce(torch.logical_and, (b.same for b in branches), skip.same)
    return replace(skip, q1=q1, q2=q2, nngp=nngp, ntk=ntk, same=same)


def _floating(x: Tensor) -> Tensor:
    if x.is_complex():
        raise ValueError("got complex inputs; expected real numbers")
    return x if x.is_floating_point() else x.double()
