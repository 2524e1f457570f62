"""How the loss bends by the weights of each block."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.curvature import Curvature
from layerwright.core.registry import BY_NAME, measure
from layerwright.maths.lanczos import Product, from_matrix, largest, outliers, traces, with_error

_LENGTHS = ("largest", "smallest", "trace", "trace_error")
_COUNTS = ("outliers", "outlier_ratio", "classes")


@measure(
    unit=dict.fromkeys(_LENGTHS, "nat/token") | dict.fromkeys(_COUNTS, "1"),
    tier=BY_NAME, paper="1706.04454", index=("operator",),
)  # fmt: skip
def curvature(
    hessian: Curvature, gauss_newton: Curvature, *, top: int = 12, probes: int = 8, difference: bool = False
) -> dict[tuple[str, str], Tensor]:
    """Eigenvalues of the Hessian of the loss, of its Gauss-Newton part, and of what is left, by block and in all.

    With λ_1 ≥ λ_2 ≥ … the eigenvalues of H = ∂²loss/∂w², or of G = Jᵀ S J, or of R = H − G, over a block's weights,

        largest = λ_1,   smallest = λ_P,   trace = Σ_i λ_i
        outliers = argmax_j λ_j / λ_{j+1} among the `top` largest,   outlier_ratio = that ratio

    Gradient descent with a learning rate above 2/λ_1 overshoots, first in the block with the largest λ_1. In the ratio
    λ_{j+1} counts as at least λ_1/100; a ratio near 1 says that nothing stands apart. In trained classifiers about as
    many eigenvalues stand apart as there are classes (`classes` counts the labels that occur). G sees what the logits
    do to first order and has no negative eigenvalue, R the rest. The loss is that of a few sequences; the trace is
    exact up to 256 weights and else from random probes, with its standard error. Costs about 150 products with H and
    100 with G for each block and the whole model, each about as much as two backward passes over those sequences.

    Args:
        hessian: H of some weights.
        gauss_newton: G of the same.
        top: eigenvalues among which outliers are looked for; more than there are classes.
        probes: of the trace.
        difference: also give the largest and smallest eigenvalue of R, for half as much again.

    Returns:
        by operator (`hessian`, `gauss_newton`, `difference`) and quantity.

    Example:
        >>> class Of(Curvature):
        ...     def __init__(self, *values):
        ...         self.values, self.size, self.classes, self.seed = torch.tensor(values), len(values), 2, 0
        ...     def product(self, vector):
        ...         return self.values * vector
        >>> found = curvature(Of(4.0, 1.0, 0.5), Of(3.0, 0.5, 0.0), difference=True)
        >>> [found["hessian", name].item() for name in ("largest", "smallest", "trace", "outliers", "outlier_ratio")]
        [4.0, 0.5, 5.5, 1.0, 4.0]
        >>> [found["difference", name].item() for name in ("largest", "smallest", "trace")]
        [1.0, 0.5, 2.0]

    Reference: arXiv 1706.04454.
    """
    size, seed = hessian.size, hessian.seed
    h, g = (from_matrix(m.product, size) for m in (hessian, gauss_newton))
    of_h, of_g = (traces(product, size, probes, seed) for product in (h, g))

    def highest(product: Product, count: int = 1) -> Tensor:
        return largest(product, size, count, seed=seed).values

    found: dict[str, dict[str, Tensor | float]] = {"hessian": {}, "gauss_newton": {}, "difference": {}}
    for name, product in (("hessian", h), ("gauss_newton", g)):
        values = highest(product, top)
        found[name] = {"largest": values[0], **dict(zip(_COUNTS, (*outliers(values), hessian.classes), strict=True))}
    found["hessian"]["smallest"] = -highest(lambda v: -h(v))[0]
    if difference:
        ends = highest(lambda v: h(v) - g(v))[0], -highest(lambda v: g(v) - h(v))[0]
        found["difference"] = dict(zip(("largest", "smallest"), ends, strict=True))
    # Both traces saw the same probes.
    for name, samples in (("hessian", of_h), ("gauss_newton", of_g), ("difference", of_h - of_g)):
        found[name]["trace"], found[name]["trace_error"] = with_error(samples)
    return {
        (operator, name): torch.as_tensor(x, dtype=torch.float64)
        for operator, row in found.items()
        for name, x in row.items()
    }
