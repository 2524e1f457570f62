"""How fast a deep convolutional network learns, by how much of its input the target depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.hierarchical_kernel import (
    SMOOTHNESS,
    effective_dimensions,
    learning_exponent,
    sector_decay,
    tree_kernel,
)
from layerwright.maths.kernel_regression import jitter_for, leave_one_out


@theory(paper="2208.01003")
def hierarchical_kernels(
    inputs: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    *,
    filters: Sequence[int] = (2, 2, 2),
    kernel: str = "ntk",
    smoothness: float = 1.5,
) -> Prediction:
    """Learning rates of a wide deep convolutional network on targets that depend on one patch of some layer.

    With filters s_1 … s_L that do not overlap, a node of layer l sees s_1 … s_l inputs, of effective dimension d(l).
    The kernel's eigenvalues for functions of what it sees fall with the frequency k as

        λ ∝ |k|^−(2ν + d(l)),   d(l) = (s_1 − 1) s_2 … s_l,   ν = 1/2 (NTK), 3/2 (NNGP)

    and the error on a target of smoothness ν_T that one such node sees goes as n^−β with

        β = (1 + 2ν/d(L)) min(2ν_T / (2ν + d(l)), 2),   with noise and the best ridge β / (β + 1)

    So it is the target's patch, and not the size of the input, that sets the rate; a target of everything is learned at
    a rate that goes to 0 as one over the input's dimension.

    Assumes:
        ReLU, infinite width, first patches each at random on a sphere, independent of one another; many samples. The
        target is typical of its smoothness, as a random network's output is (ν_T = 3/2).

    Args:
        inputs: `[N, d]`, neighbours in a patch beside one another, for the errors of trees on one's own data.
        targets: `[N]` or `[N, C]`, numbers; their mean is taken off.
        filters: s_1 … s_L, from the inputs on; s_1 from 2 on, and their product divides d.
        kernel: "ntk" (all layers trained) or "nngp" (the last layer trained).
        smoothness: ν_T, above 0; 1.5 of a random ReLU network, 0.5 of a draw of its tangent kernel.

    Returns:
        by layer l: what its nodes see, d(l), the decay 2ν + d(l), and β for a target of that layer: by this tree, by
        one that ends there, by one without end, and by this one with noise; with data, the squared error on the sample
        left out, over the targets' variance, by the tree that ends there.

    Raises:
        UserError: filters, a kernel or a smoothness that cannot be used, or arrays that do not fit them.

    Example:
        >>> found = hierarchical_kernels(filters=[2, 2]).table
        >>> found["dimension"].tolist(), found["exponent"].tolist(), found["exponent_of_own_tree"].tolist()
        ([1, 2], [2.25, 1.5], [3.0, 1.5])

    Reference: arXiv 2208.01003 for decays and for rates with noise; those without are derived here, and checked by
    regressions. Decays hold from frequencies of about 10 on: a few hundred samples for each dimension of the target.
    """
    sizes: list[int] = [filters] if isinstance(filters, int) else list(filters)
    if not (sizes and all(isinstance(s, int) and s >= 1 for s in sizes) and sizes[0] >= 2):
        raise UserError(f"got filters={sizes}; expected whole numbers from 1 on, the first from 2 on")
    if kernel not in SMOOTHNESS:
        raise UserError(f"got kernel={kernel!r}; expected ntk or nngp")
    if not 0 < smoothness < math.inf:
        raise UserError(f"got smoothness={smoothness}; expected a number above 0")
    nu, dimensions = SMOOTHNESS[kernel], effective_dimensions(sizes)

    def beta(d: int, whole: float, noise: bool = False) -> float:
        return learning_exponent(d, smoothness, nu, whole, noise)

    table = pd.DataFrame(
        {
            "layer": range(1, len(sizes) + 1),
            "inputs_seen": np.cumprod(sizes),
            "dimension": dimensions,
            "eigenvalue_decay": [sector_decay(d, nu) for d in dimensions],
            "exponent": [beta(d, dimensions[-1]) for d in dimensions],
            "exponent_of_own_tree": [beta(d, d) for d in dimensions],
            "exponent_of_endless_tree": [beta(d, math.inf) for d in dimensions],
            "exponent_with_noise": [beta(d, dimensions[-1], noise=True) for d in dimensions],
        }
    )
    notes: list[str] = []
    if inputs is not None or targets is not None:
        table["left_out_error"] = _errors(inputs, targets, sizes, kernel, notes)
    lines = {
        name: [(float(row["layer"]), float(row[key])) for _, row in table.iterrows()]
        for name, key in (("this tree", "exponent"), ("one that ends there", "exponent_of_own_tree"),
                          ("(without end)", "exponent_of_endless_tree"))
    }  # fmt: skip
    units = {name: "1" for name in table.columns if name not in ("layer", "inputs_seen")} | {"inputs_seen": "input"}
    return Prediction(table, units, notes, Picture(lines, "layer that the target is a node of", "exponent β (1)"))


def _errors(inputs: object, targets: object, filters: list[int], kernel: str, notes: list[str]) -> list[float]:
    """Leave-one-out error of the trees that end at each layer, over the targets' variance."""
    if inputs is None or targets is None:
        raise UserError("got inputs or targets alone; expected both, or neither")
    x, y = np.asarray(inputs), np.asarray(targets)
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2 or not (x.size and y.size):
        raise UserError(f"got inputs {x.shape} and targets {y.shape}; expected rows, as many of both, from 2 on")
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf" or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("got inputs or targets that are not finite real numbers; leave those rows out")
    if x.shape[1] % math.prod(filters):
        raise UserError(f"got {x.shape[1]} inputs; expected a multiple of {math.prod(filters)}, the filters' product")
    if (y == y[0]).all():
        raise UserError("got targets that are the same for all inputs; expected some that vary")
    y = y - y.mean(0)
    found = []
    for layer in range(1, len(filters) + 1):
        k = getattr(tree_kernel(torch.from_numpy(x.astype(float)), filters[:layer]), kernel).numpy()
        if not k.any():
            raise UserError("got inputs of zeros; expected some that vary")
        if jitter := jitter_for(np.linalg.eigvalsh(k)):
            notes.append(f"the kernel of {layer} layers is singular: {jitter:.3g} is added to its diagonal")
        found.append(float((leave_one_out(k, y, jitter) ** 2).mean() / (y**2).mean()))
    return found
