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
    hessian: Curvature, gauss_newton: Curvature, *, top: int = 16, probes: int = 8
) -> dict[tuple[str, str], Tensor]:
    """Eigenvalues of the Hessian of the loss, of its Gauss-Newton part, and of what is left, by block and in all.

    With λ_1 ≥ λ_2 ≥ … the eigenvalues of H = ∂²loss/∂w², or of G = Jᵀ S J, or of R = H − G, over a block's weights,

        largest = λ_1,   smallest = λ_P,   trace = Σ_i λ_i
        outliers = argmax_j λ_j / λ_{j+1} among the `top` largest,   outlier_ratio = that ratio

    Gradient descent with a learning rate above 2/λ_1 overshoots, first in the block with the largest λ_1. In the ratio
    λ_{j+1} counts as at least λ_1/100; a ratio near 1 says that nothing stands apart. In trained classifiers about as
    many eigenvalues stand apart as there are classes (`classes` counts the labels that occur). G sees what the logits
    do to first order and has no negative eigenvalue, R the rest. The loss is that of a few sequences; the trace is
    exact up to 256 weights and else from random probes, with its standard error.

    Args:
        hessian: H of some weights.
        gauss_newton: G of the same.
        top: eigenvalues among which outliers are looked for; more than there are classes.
        probes: of the trace.

    Returns:
        by operator (`hessian`, `gauss_newton`, `difference`) and quantity.

    Example:
        >>> class Of(Curvature):
        ...     def __init__(self, *values):
        ...         self.values, self.size, self.classes, self.seed = torch.tensor(values), len(values), 2, 0
        ...     def product(self, vector):
        ...         return self.values * vector
        >>> found = curvature(Of(4.0, 1.0, 0.5), Of(4.0, 0.5, 0.0))
        >>> [found["hessian", name].item() for name in ("largest", "smallest", "trace", "outliers", "outlier_ratio")]
        [4.0, 0.5, 5.5, 1.0, 4.0]
        >>> [found["difference", name].item() for name in ("largest", "smallest", "trace")]
        [0.5, 0.0, 1.0]

    Reference: arXiv 1706.04454.
    """
    size, seed = hessian.size, hessian.seed
    h, g = (from_matrix(m.product, size) for m in (hessian, gauss_newton))

    def numbers(product: Product, samples: Tensor, count: int) -> dict[str, Tensor]:
        values = largest(product, size, count, seed=seed).values
        lowest = -largest(lambda v: -product(v), size, seed=seed).values[0]
        found = dict(zip(_LENGTHS, (values[0], lowest, *with_error(samples)), strict=True))
        if count > 1:
            counts = (*outliers(values), hessian.classes)
            found |= {name: torch.tensor(float(x)) for name, x in zip(_COUNTS, counts, strict=True)}
        return found

    of_h, of_g = (traces(product, size, probes, seed) for product in (h, g))
    found = {
        "hessian": numbers(h, of_h, top),
        "gauss_newton": numbers(g, of_g, top),
        "difference": numbers(lambda v: h(v) - g(v), of_h - of_g, 1),  # both traces saw the same probes
    }
    return {(operator, name): x for operator, row in found.items() for name, x in row.items()}
