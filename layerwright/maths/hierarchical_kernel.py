"""Kernels of convolutional networks whose patches do not overlap, and how fast they learn, by what a target sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from layerwright.maths.activation import Activation, activation
from layerwright.maths.kernel import State, dense, inputs, nonlinear

# ν of the kernels of ReLU: near an input they go as the distance to the power 2ν.
SMOOTHNESS = {"ntk": 0.5, "nngp": 1.5}


def tree_kernel(x: Tensor, filters: Sequence[int], x2: Tensor | None = None, phi: Activation | None = None) -> State:
    """Both kernels of an infinitely wide convolutional network of strides as long as its filters.

        K_i = E φ(u) φ(v),   u, v of covariance 2/s Σ_j K_j over the s nodes or inputs below

    and T likewise (`maths/kernel.py`); the output is the mean over the nodes of the last layer.

    A layer is gone through node by node: at most two kernels of each layer are held at once, so that the memory is
    about 34 L N M bytes for L layers, whatever the width of the inputs.

    Args:
        x: inputs `[N, d]`; neighbours in a patch stand beside one another.
        filters: s of each layer, from the inputs on; their product divides d.
        x2: second inputs `[M, d]`; left out, the first.
        phi: the activation; left out, ReLU.

    Raises:
        ValueError: filters that are not whole numbers from 1 on or do not divide d, or inputs as in `kernel.inputs`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
        >>> k = tree_kernel(x, [2]).nngp  # patches of the same direction count ½, those at right angles 1/(2π)
        >>> bool((k[0, 1] - (1 / 2 + 1 / (2 * torch.pi)) / 2).abs() < 1e-12)
        True

    Reference: arXiv 2208.01003.
    """
    product = math.prod(filters)
    if not (filters and all(isinstance(s, int) and s >= 1 for s in filters)):
        raise ValueError(f"got filters {list(filters)}; expected whole numbers from 1 on")
    if x.ndim != 2 or x.shape[1] % product:
        raise ValueError(f"got inputs {tuple(x.shape)}; expected rows of a multiple of {product}, the filters' product")
    step = nonlinear(phi or activation("relu"))
    second = x if x2 is None else x2

    def node(layer: int, start: int) -> State:
        """The node of a layer whose patch begins at that input."""
        size = filters[layer]
        if layer == 0:
            below = inputs(x[:, start : start + size], second[:, start : start + size])
        else:
            width = math.prod(filters[:layer])
            below = _mean(node(layer - 1, start + j * width) for j in range(size))
        return step(dense(2.0)(below))

    return dense()(_mean(node(len(filters) - 1, start) for start in range(0, x.shape[1], product)))


def effective_dimensions(filters: Sequence[int]) -> list[int]:
    """Dimension of what a node of each layer sees, of inputs whose first patches each lie on a sphere.

        d(1) = s_1 − 1,   d(l) = (s_1 − 1) s_2 … s_l

    Example:
        >>> effective_dimensions([3, 2, 2])
        [2, 4, 8]
    """
    return [(filters[0] - 1) * math.prod(filters[1:layer]) for layer in range(1, len(filters) + 1)]


def sector_decay(dimension: int, smoothness: float) -> float:
    """Power by which eigenvalues fall with the frequency |k|, of functions that a node sees: 2ν + d(l).

    Example:
        >>> sector_decay(2, SMOOTHNESS["ntk"])
        3.0

    Reference: arXiv 2208.01003; checked here by Fourier series on circles.
    """
    return 2 * smoothness + dimension


def learning_exponent(dimension: int, target: float, student: float, whole: float, noise: bool = False) -> float:
    """The β of an error n^−β of regression with a tree's kernel on a target that one of its nodes sees.

    With ν the student's smoothness, ν_T the target's (its squares fall as |k|^−(2ν_T + d)), d the dimension of what the
    target sees, and D that of all the tree sees,

        β = (1 + 2ν/D) min(2ν_T / (2ν + d), 2),   with noise and the best ridge β / (β + 1)

    as n samples learn the frequencies whose eigenvalue is above n^−(1 + 2ν/D). A wider tree costs the factor in
    brackets, between 1 and 1 + 2ν/d, and no more: without end, it leaves 2ν_T / (2ν + d).

    Args:
        dimension: d.
        target: ν_T, above 0.
        student: ν.
        whole: D, from d on.
        noise: whether labels have noise.

    Example:
        >>> learning_exponent(1, 1.5, 0.5, 1), learning_exponent(1, 1.5, 0.5, math.inf)
        (3.0, 1.5)

    Reference: arXiv 2208.01003 for the case with noise, by source and capacity; without noise derived here, as is the
    bound of 2, where the kernel is too rough to use the target's smoothness.
    """
    beta = (1 + 2 * student / whole) * min(2 * target / (2 * student + dimension), 2.0)
    return beta / (beta + 1) if noise else beta


def circle_spectrum(filters: Sequence[int], kind: str, points: int) -> np.ndarray:
    """Eigenvalues of a tree over circles: first patches of two inputs, of length √2, at any angles.

    The kernel is a function of differences of angles, so that waves are its eigenfunctions.

    Args:
        filters: as in `tree_kernel`, the first 2; the tree has one node at its top.
        kind: "nngp" or "ntk".
        points: angles of each circle, even; points to the power of the circles in all.

    Returns:
        by frequency, in the order of `numpy.fft`, one axis for each circle.

    Example:
        >>> values = circle_spectrum([2], "ntk", 256)
        >>> round(math.log2(values[16] / values[32]), 1)  # 2ν + 1
        2.0
    """
    circles = math.prod(filters[1:])
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    grid = torch.stack(torch.meshgrid(*[angles] * circles, indexing="ij"), -1).reshape(-1, circles)
    x = math.sqrt(2) * torch.stack([grid.cos(), grid.sin()], -1).flatten(1)
    found = getattr(tree_kernel(x[:1], filters, x), kind)[0].reshape([points] * circles).numpy()
    return np.fft.fftn(found).real / found.size


def _mean(states: Iterator[State]) -> State:
    total, count = next(states), 1
    for state in states:
        q1, q2, nngp, ntk = (getattr(total, name) + getattr(state, name) for name in ("q1", "q2", "nngp", "ntk"))
        total, count = State(q1, q2, nngp, ntk, total.same & state.same), count + 1
    return State(total.q1 / count, total.q2 / count, total.nngp / count, total.ntk / count, total.same)
