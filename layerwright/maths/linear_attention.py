"""Linear self-attention that takes steps of gradient descent on the examples in its context."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from layerwright.maths.in_context import Contexts

_TINY = torch.finfo(torch.float64).tiny


class AttentionLayer(NamedTuple):
    """Weights of a layer of linear self-attention, `[D, D]` each.

    e_j ← e_j + P Σ_i (W_V e_i) (W_K e_i)ᵀ W_Q e_j,   i over the context, j over all tokens
    """

    key: Tensor
    query: Tensor
    value: Tensor
    projection: Tensor


def gradient_step_layer(dimensions: int, step: float, shrink: float = 0.0) -> AttentionLayer:
    """The weights with which a layer takes one step of gradient descent on ½ Σ (wᵀx_i − y_i)².

        tokens e_i = (x_i, y_i),   W_K = W_Q = diag(I, 0),   W_V = −I,   P = diag(γ I, η)

    From w = 0 a layer turns targets into residuals, y_i ← y_i − x_iᵀ w, so that the same layer again takes the next
    step; the target of the query starts at 0 and ends as minus the prediction. With γ > 0 a layer also changes the
    points, x_j ← (I − γ Σ x_i x_iᵀ) x_j, which evens out their spread: gradient descent with a correction of curvature
    (GD++).

    Args:
        dimensions: d.
        step: η.
        shrink: γ.

    Example:
        >>> xs, ys = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]]), torch.tensor([[3.0, 5.0, 0.0]])
        >>> read = linear_attention(tokens(xs, ys), gradient_step_layer(2, 0.1))
        >>> prediction(read)  # w = 0.1 (3 (1, 0) + 5 (0, 2))
        tensor([1.3000], dtype=torch.float64)

    Reference: arXiv 2212.07677; equal to gradient descent on tasks in the tests.
    """
    select = torch.ones(dimensions + 1, dtype=torch.float64)
    projection = shrink * select
    select[-1], projection[-1] = 0.0, step
    return AttentionLayer(select.diag(), select.diag(), -torch.eye(dimensions + 1).double(), projection.diag())


def tokens(xs: Tensor, ys: Tensor) -> Tensor:
    """Points with their targets, that of the last one hidden: `[N, T + 1, d]`, `[N, T + 1]` to `[N, T + 1, d + 1]`.

    Example:
        >>> tokens(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[3.0, 4.0]])).tolist()
        [[[1.0, 3.0], [2.0, 0.0]]]
    """
    shown = ys.double().clone()
    shown[:, -1] = 0.0
    return torch.cat([xs.double(), shown.unsqueeze(-1)], -1)


def linear_attention(given: Tensor, layer: AttentionLayer) -> Tensor:
    """Tokens `[N, T + 1, D]` behind a layer; the last of them is the query, which no token attends to.

    Example:
        >>> one = torch.ones(1, 1)
        >>> linear_attention(torch.tensor([[[1.0], [2.0], [3.0]]]), AttentionLayer(one, one, one, one)).flatten()
        tensor([ 6., 12., 18.])
    """
    context = given[:, :-1]
    gathered = (context @ layer.key.mT).mT @ (context @ layer.value.mT)
    return given + (given @ layer.query.mT) @ gathered @ layer.projection.mT


def prediction(given: Tensor) -> Tensor:
    """What tokens say of the query's target, `[N]`."""
    return -given[:, -1, -1]


def corrected_descent(given: Contexts, layers: int, step: float, shrink: float) -> Tensor:
    """Predictions of gradient descent that evens out the spread of its points on the way (GD++).

    In the eigenvectors of S, with b the share of the residuals that is left and a that of the points,

        ŷ ← ŷ + η a² b parts,   b ← b (1 − η λ a²),   a ← a (1 − γ λ a²),   from ŷ = 0, a = b = 1

    Args:
        given: the contexts.
        layers: k of the last.
        step: η.
        shrink: γ; with 0 this is gradient descent.

    Returns:
        after 0, 1, … layers: `[layers + 1, N, T]`, float64.

    Example:
        >>> from layerwright.maths.in_context import contexts
        >>> given = contexts(torch.tensor([[[2.0], [3.0]]]), torch.tensor([[2.0, 0.0]]))  # S = 4, Xᵀy = 4
        >>> corrected_descent(given, 2, 0.1, 0.05).flatten()  # the last is 1.2 + 0.1 · 0.8² · 0.6 · 12
        tensor([0.0000, 1.2000, 1.6608], dtype=torch.float64)

    Reference: derived here from the layer above.
    """
    values = given.values
    weights, left, spread = torch.zeros_like(values), torch.ones_like(values), torch.ones_like(values)
    found = [given.predict(weights)]
    for _ in range(layers):
        now = spread.square()
        weights = weights + step * now * left
        left, spread = left * (1 - step * values * now), spread * (1 - shrink * values * now)
        found.append(given.predict(weights))
    return torch.stack(found)


class BestSteps(NamedTuple):
    """Step η, shrinkage γ and mean squared error of the best layers of one kind."""

    step: float
    shrink: float
    error: float


def best_step(given: Contexts, targets: Tensor, layers: int) -> BestSteps:
    """The η, the same for all layers, of the least mean squared error of gradient descent.

    It is searched for up to 2/λ of the context whose largest λ is the least.

    Of one step on Gaussian points of variance 1, weights of variance 1 and noise of variance σ² it is
    1/(T + d + 1 + σ²), as E Tr S = T d and E Tr S² = T d (T + d + 1).

    Args:
        given: the contexts.
        targets: `[N, T]`.
        layers: k, from 1 on.

    Example:
        >>> from layerwright.maths.in_context import contexts
        >>> given = contexts(torch.tensor([[[2.0], [3.0]]]), torch.tensor([[2.0, 0.0]]))
        >>> round(best_step(given, torch.tensor([[3.0]]), 1).step, 6)  # one step of 1/4 is there
        0.25
    """
    # With a longer step the residuals of every context would grow.
    end = 2.0 / float(given.values.amax(-1).amin().clamp_min(_TINY))

    def error(step: float) -> float:
        return _error(corrected_descent(given, layers, step, 0.0)[-1], targets)

    found = minimize_scalar(error, bounds=(0.0, end), method="bounded", options={"xatol": 1e-9 * end})
    return BestSteps(float(found.x), 0.0, float(found.fun))


def best_corrected(given: Contexts, targets: Tensor, layers: int) -> BestSteps:
    """The η and γ, the same for all layers, of the least mean squared error of corrected descent: a local optimum.

    It is searched for from the best η without correction on, so that it is never worse than that.

    Args:
        given: the contexts.
        targets: `[N, T]`.
        layers: k, from 1 on.

    Example:
        >>> from layerwright.maths.in_context import contexts
        >>> xs = torch.randn(50, 9, 3, generator=torch.Generator().manual_seed(0))
        >>> given = contexts(xs, xs.sum(-1))
        >>> best_corrected(given, xs[:, 1:].sum(-1), 2).error < best_step(given, xs[:, 1:].sum(-1), 2).error
        True
    """
    plain = best_step(given, targets, layers)
    if layers == 1 or not plain.step:  # the points' spread is of use to later layers only
        return plain
    unit = plain.step

    def error(found: tuple[float, float]) -> float:
        return _error(corrected_descent(given, layers, found[0] * unit, found[1] * unit)[-1], targets)

    start = [[1.0, 0.0], [1.1, 0.0], [1.0, 0.3]]
    found = minimize(error, start[0], method="Nelder-Mead", options={"initial_simplex": start, "xatol": 1e-6})
    return BestSteps(float(found.x[0]) * unit, float(found.x[1]) * unit, float(found.fun))


def _error(predicted: Tensor, targets: Tensor) -> float:
    return float((predicted - targets).square().mean())
