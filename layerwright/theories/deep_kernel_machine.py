"""What a wide network that still learns its representation makes of data, beside one that does not."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.deep_kernel_machine import KERNELS, Machine, fit, process, spread_points
from layerwright.maths.kernel_alignment import centred_alignment

# The factors of more points than this, and what L-BFGS remembers of them, fill the memory.
_MOST = 1000
_HELD_OUT = 0.2
Row = tuple[str, float | str, str, str]


@theory(paper="2108.13097")
def deep_kernel_machine(
    inputs: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    *,
    kernel: str = "rbf",
    depth: int = 2,
    nu: float = 1.0,
    noise: float = 0.1,
    points: int = 0,
    steps: int = 200,
    seed: int = 0,
) -> Prediction:
    """What a network of infinite width learns where its outputs are as many as its units: a deep kernel machine.

    The posterior over the Gram matrices G_l of the layers is then at the maximum of

        Σ_c log N(y_c; 0, K(G_L) + σ²) − ν Σ_l KL(N(0, G_l) ‖ N(0, K(G_{l−1}))),   G_0 = XXᵀ/d

    with K the kernel of a layer: representations between those of the network as a Gaussian process (NNGP), which has
    G_l = K(G_{l−1}) and is the limit of large ν, and those that the targets ask for. On fewer points than inputs, Gram
    matrices are learned at these only, and the likelihood is a lower bound.

    Assumes:
        width to infinity, with ν times as many units in a layer as outputs, of which each target stands for as many;
        layers that are Gaussian given the one before, as of a deep Gaussian process: for networks with weights an
        approximation. Full data, no learned variances.

    Args:
        inputs: rows of numbers, `[N, d]`, as the network reads them; left out, made.
        targets: `[N]` or `[N, C]`, numbers; they are moved and scaled to mean 0 and variance 1.
        kernel: "rbf" (exp(−|u − v|²/2) of a layer's units), "relu" or "linear".
        depth: layers that learn; the read-out reads the kernel of the last.
        nu: ν, above 0; large is the NNGP.
        noise: σ², of the scaled targets.
        points: that Gram matrices are learned at, those told least by the others; 0 for all inputs, up to 1000.
        steps: of L-BFGS, at most.
        seed: draws the fifth of the data that is held out.

    Returns:
        objective and held-out error (over the targets' variance), of the machine and of the NNGP; by layer, how far
        its Gram matrix is from the NNGP's (Frobenius, relative), its divergence, and both alignments with the targets.

    Raises:
        UserError: arrays or options that cannot be used, fewer than 10 rows, or more than 1000 points.

    Example:
        >>> found = deep_kernel_machine(nu=1e8, steps=5)  # nothing is learned
        >>> round(found["moved_1"], 3), round(found["held_out_error"] / found["held_out_error_nngp"], 3)
        (0.0, 1.0)

    Reference: arXiv 2108.13097. Measured here: on all points and few noisy targets it fits the noise, and errs more
    than the NNGP; a larger ν, or a fifth of the points, keeps it from that.
    """
    _check(kernel, depth, nu, noise, points, steps, seed)
    x, y = _made() if inputs is None and targets is None else _read(inputs, targets)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    held, train = order[: math.ceil(_HELD_OUT * len(x))], order[math.ceil(_HELD_OUT * len(x)) :]
    if (y[train] == y[train[0]]).all(0).any():
        raise UserError("got a target that is the same for all inputs; expected some that vary: leave it out")
    y = y - y[train].mean(0)
    y = y / y[train].square().mean(0).sqrt()
    count = points or len(train)
    if count > min(_MOST, len(train)):
        raise UserError(f"got {len(train)} inputs to fit to and {count} points; expected up to {_MOST}: set points=300")
    taken = spread_points(x[train], count, kernel) if points else list(range(len(train)))
    start = process(
        x[train], y[train], depth=depth, kernel=kernel, nu=nu, noise=noise, points=x[train][taken] if points else None
    )
    try:
        machine = fit(start, steps)
    except (RuntimeError, ValueError) as error:  # a kernel that cannot be factored
        raise UserError(f"the kernel is singular even with jitter ({str(error)[:60]}); take more noise") from None
    rows = _errors(start, machine, x[held], y[held])
    layers = _layers(start, machine, y[train][taken])
    for layer, (moved, divergence, aligned, before) in enumerate(layers, 1):
        rows += [
            (f"moved_{layer}", moved, "1", f"‖G_{layer} − NNGP‖ / ‖NNGP‖"),
            (f"divergence_{layer}", divergence, "nat", f"KL of layer {layer} from its prior"),
            (f"alignment_{layer}", aligned, "1", f"of G_{layer} with the targets, centred"),
            (f"alignment_{layer}_nngp", before, "1", "the same of the NNGP"),
        ]
    bottom = centred_alignment(start.grams()[0], y[train][taken] @ y[train][taken].mT)
    lines = {
        name: list(enumerate([bottom, *(row[k] for row in layers)]))
        for name, k in (("deep kernel machine", 2), ("(NNGP)", 3))
    }
    notes = ["inputs and targets are made"] if inputs is None else []
    return Prediction(
        quantities(rows), notes=notes, picture=Picture(lines, "layer (0: inputs)", "alignment with the targets (1)")
    )


def _errors(start: Machine, machine: Machine, x: Tensor, y: Tensor) -> list[Row]:
    def error(of: Machine) -> float:
        return float((of.predict(x) - y).square().mean())

    objective, before = (float(of.objective()) / len(machine.inputs) for of in (machine, start))
    return [
        ("objective", objective, "nat/sample", "log-likelihood less divergences, over the samples fitted to"),
        ("objective_nngp", before, "nat/sample", "the same before anything is learned"),
        ("held_out_error", error(machine), "1", "mean squared error on the held-out fifth, targets of variance 1"),
        ("held_out_error_nngp", error(start), "1", "the same of the NNGP"),
    ]


def _layers(start: Machine, machine: Machine, targets: Tensor) -> list[tuple[float, float, float, float]]:
    """By layer: distance from the NNGP's Gram matrix, divergence, and both alignments."""
    labels = targets @ targets.mT
    found = []
    for learned, before, divergence in zip(machine.grams()[1:], start.grams()[1:], machine.divergences()):
        moved = float((learned - before).norm() / before.norm())
        found.append((moved, float(divergence), centred_alignment(learned, labels), centred_alignment(before, labels)))
    return found


def _check(kernel: str, depth: int, nu: float, noise: float, points: int, steps: int, seed: int) -> None:
    if kernel not in KERNELS:
        raise UserError(f"got kernel={kernel!r}; expected one of {', '.join(KERNELS)}")
    for name, value, least in (("depth", depth, 1), ("points", points, 0), ("steps", steps, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"got {name}={value}; expected a whole number from {least} on")
    if not (0 < nu < math.inf and 0 < noise < math.inf):
        raise UserError(f"got nu={nu}, noise={noise}; expected numbers above 0")


def _read(inputs: object, targets: object) -> tuple[Tensor, Tensor]:
    if inputs is None or targets is None:
        raise UserError("got inputs or targets alone; expected both, or neither")
    x, y = np.asarray(inputs), np.asarray(targets)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not (x.size and y.size):
        raise UserError(f"got inputs {x.shape} and targets {y.shape}; expected rows, as many of both")
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        raise UserError(f"got inputs of type {x.dtype} and targets of type {y.dtype}; expected real numbers")
    if len(x) < 10:
        raise UserError(f"got {len(x)} rows; expected at least 10, of which a fifth is held out")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("got inputs or targets that are NaN or infinite; leave those rows out")
    if (x == x[0]).all():
        raise UserError("got inputs that are all the same; expected some that vary")
    return torch.from_numpy(x.astype(float)), torch.from_numpy(y.astype(float))


def _made() -> tuple[Tensor, Tensor]:
    """A target of one direction among five."""
    x = np.random.default_rng(0).standard_normal((75, 5))
    return torch.from_numpy(x), torch.from_numpy(np.sin(2 * x[:, :1]))
