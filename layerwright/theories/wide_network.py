"""What infinite width says of a network on one's data: kernels, the largest learning rate, what is learned and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.kernel import Kernels
from layerwright.maths.kernel_regression import jitter_for, leave_one_out, time_to_learn, training_error
from layerwright.theories.wide_data import check_sizes, inputs_of, made, refuse_zeros, remarks, targets_of, tower_of

_LEFT = 0.01
_POINTS = 40
Row = tuple[str, float | str, str, str]


@theory(paper="1806.07572")
def wide_network(
    inputs: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    *,
    activation: str | Callable[..., torch.Tensor] = "relu",
    depth: int = 3,
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
    residual: float | None = None,
    filter_size: int = 3,
    readout: str = "pool",
    samples: int = 100,
    dimension: int = 10,
) -> Prediction:
    """How an infinitely wide network sees data, the largest learning rate, and what it learns, and how fast.

    With K the covariance of an output over initialisations and T the inner product of its gradients, layer by layer

        K ← C_b + C_W E φ(u) φ(v),   T ← K + C_W T · E φ′(u) φ′(v),   u, v of the covariance K before

    training by gradient flow on Σ (f − y)² / 2N leaves y − f = e^{−Tt/N} (y − f₀), and ends at regression with the
    kernel T. Eigenvalues and learning rates are those of T/N: gradient descent with steps above 2/λ_max diverges. On
    images, where layers are convolutions, K and T are averaged over the pixels of a filter too.

    Assumes:
        width to infinity at a fixed depth, NTK parametrisation (weights N(0, 1) times √(C_W / inputs), biases times
        √C_b), one output or independent ones, the squared error, full batches, no weight decay; errors are those of
        the mean over initialisations.

    Args:
        inputs: rows of numbers, `[N, d]`, or images, `[N, C, H, W]`, as the network reads them; left out, points drawn
            on a sphere of radius √d.
        targets: `[N]` or `[N, C]`, numbers; their mean is taken off. Left out beside inputs: nothing about learning.
        activation: a name as in `maths/activation.py` (relu, tanh, gelu, silu, …), or in Python any elementwise
            function with a slope.
        depth: hidden layers (dense, or convolutions on images), or residual blocks after a first one.
        weight_variance: C_W of every layer but the last, which has 1.
        bias_variance: C_b of the same layers.
        residual: r of blocks x + r W φ(x); left out, layers without residual branches.
        filter_size: s of the convolutions that read images, s × s pixels, with zeros around the image.
        readout: of images, before the last layer: the mean over all positions (`pool`), or all of them (`flatten`).
        samples: N, where the inputs are made.
        dimension: d, where the inputs are made.

    Returns:
        variance and mean correlation of outputs, the share that the last layer has in T, extreme eigenvalues of T/N,
        the largest learning rate; with targets, the leave-one-out error of T and of K (only the last layer trained),
        alignment and time to learn. The picture is the training error by time, or else the eigenvalues.

    Raises:
        UserError: arrays or options cannot be used, the activation has no tangent kernel, or the kernel is 0.

    Example:
        >>> found = wide_network(np.eye(2), depth=1)  # T is 1 on the diagonal, 1/(2π) off it
        >>> round(found["largest_eigenvalue"], 4), round(found["largest_learning_rate"], 4)
        (0.5796, 3.4508)

    Reference: arXiv 1806.07572.
    """
    check_sizes(depth, samples, dimension)
    if inputs is None and targets is not None:
        raise UserError("got targets without inputs; expected both, or neither")
    x, y = made(samples, dimension) if inputs is None else (inputs_of(inputs, "inputs"), None)
    if targets is not None:
        y = targets_of(targets, "targets", len(x))
    elif samples == 1:
        y = None
    y = None if y is None else _centred(y)
    network = tower_of(x, activation, depth, weight_variance, bias_variance, residual, filter_size, readout)
    found = _facts(network.kernel(torch.from_numpy(x)))
    notes = remarks(x) + (["inputs and targets are made"] if inputs is None else [])
    if x.ndim == 2 and network.way(torch.from_numpy(x)) == "tiles":
        notes.append("norms differ, so that no table of angles holds: all layers were worked out for each pair")
    rows = list(found.rows)
    if y is not None:
        rows += _learning(found, y, notes)
    return Prediction(quantities(rows), notes=notes, picture=_picture(found, y))


class _Found(NamedTuple):
    """Kernels of the data, eigenvalues λ of T/N from the largest on, their vectors, and the rows on them."""

    kernels: Kernels
    values: np.ndarray
    vectors: np.ndarray
    rows: list[Row]


def _facts(k: Kernels) -> _Found:
    n = len(k.q1)
    values, vectors = np.linalg.eigh(k.ntk.numpy() / n)
    values, vectors = values[::-1].clip(0.0), vectors[:, ::-1]
    refuse_zeros(float(values[0]))
    singular = jitter_for(values) > 0
    rows: list[Row] = [
        ("samples", n, "sample", "N"),
        ("output_variance", float(k.q1.mean()), "1", "of an output over initialisations, mean over samples"),
        ("output_correlation", _correlation(k), "1", "of outputs at two samples, mean over pairs"),
        ("tangent_diagonal", float(k.ntk.diagonal().mean()), "1", "mean of T for a sample and itself"),
        ("last_layer_share", float(k.q1.sum() / k.ntk.diagonal().sum()), "1", "of it, by the last layer's weights"),
        ("largest_eigenvalue", float(values[0]), "1", "λ_max of T/N"),
        ("smallest_eigenvalue", float(values[-1]), "1", "λ_min of T/N"),
        ("condition_number", math.inf if singular else float(values[0] / values[-1]), "1", "λ_max / λ_min"),
        ("largest_learning_rate", 2 / float(values[0]), "1", "2/λ_max, for the loss Σ (f − y)² / 2N"),
    ]
    return _Found(k, values, vectors, rows)


def _correlation(k: Kernels) -> float:
    """Mean over pairs of two samples whose outputs vary; NaN where there are none."""
    scale = (k.q1[:, None] * k.q2).sqrt()
    pairs = (scale > 0).fill_diagonal_(False)
    return float((k.nngp[pairs] / scale[pairs]).mean())


def _learning(found: _Found, y: np.ndarray, notes: list[str]) -> list[Row]:
    """What regression with either kernel gets wrong, and how long it takes. Notes what is added to a diagonal."""
    errors = {}
    for name, kernel in (("T", found.kernels.ntk.numpy()), ("K", found.kernels.nngp.numpy())):
        if jitter := jitter_for(np.linalg.eigvalsh(kernel)):
            notes.append(f"{name} is singular: {jitter:.3g} is added to its diagonal for the leave-one-out error")
        errors[name] = float((leave_one_out(kernel, y, jitter) ** 2).mean() / (y**2).mean())
    along = ((found.vectors.T @ y) ** 2).sum(1)
    kernel = found.kernels.ntk.numpy()
    alignment = float((found.values @ along) * len(y) / (np.linalg.norm(kernel) * along.sum()))
    time = time_to_learn(found.values, along, _LEFT)
    return [
        ("left_out_error", errors["T"], "1", "squared error on the sample left out, by T, over the targets' variance"),
        ("left_out_error_last_layer", errors["K"], "1", "the same by K: only the last layer is trained"),
        ("alignment", alignment, "1", "yᵀTy / (‖T‖ yᵀy): 1 where T = yyᵀ"),
        ("time_to_learn", time, "1", "learning rate times steps until 1 % of the training error is left"),
        ("steps_to_learn", time * float(found.values[0]), "step", "of a learning rate of half the largest"),
    ]


def _picture(found: _Found, y: np.ndarray | None) -> Picture | None:
    values = found.values
    if y is None:
        shown = [(float(rank), float(value)) for rank, value in enumerate(values, 1) if value > 0]
        return Picture({"T/N": shown}, across="rank", up="eigenvalue (1)", log=True)
    along = ((found.vectors.T @ y) ** 2).sum(1)
    times = np.geomspace(0.1, 1e4, _POINTS) / values[0]
    errors = training_error(values, along, times) / (along.sum() / len(along))
    line = [(float(t), float(error)) for t, error in zip(times, errors)]
    return Picture(
        {"training": line}, across="learning rate times steps", up="share of the error left (1)", log_across=True
    )


def _centred(y: np.ndarray) -> np.ndarray:
    if len(y) == 1:
        raise UserError("got targets of one input; expected at least two, or leave them out")
    if (y == y[0]).all():
        raise UserError("got targets that are the same for all inputs; expected some that vary, or leave them out")
    return y - y.mean(0)
