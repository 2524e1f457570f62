"""The whole spectrum of the Hessian and of its Gauss-Newton part."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.curvature import Curvature
from layerwright.core.registry import BY_NAME, measure
from layerwright.maths.lanczos import spectral_quadrature


@measure(
    unit={"eigenvalue": "nat/token", "density": "token/nat", "density_error": "token/nat"},
    tier=BY_NAME, paper="1706.04454", index=("operator", "place"),
)  # fmt: skip
def spectral_density(
    hessian: Curvature, gauss_newton: Curvature, *, points: int = 201, width: float = 0.02, steps: int = 40,
    probes: int = 4,
) -> dict[tuple[str, int, str], Tensor]:  # fmt: skip
    """Which eigenvalues the Hessian of the loss and its Gauss-Newton part have: the share of them around each value.

    With λ_1 … λ_P the eigenvalues by a block's weights, and σ = `width` times their range,

        density(x) = Σ_i exp(−(x − λ_i)² / 2σ²) / (P √(2π) σ)

    which integrates to 1. Exact up to 256 weights; else by stochastic Lanczos, with the standard error over its random
    probes. Of trained networks most of it is a bulk around zero, with a few outliers above: one of P weights shows as
    a bump of height 0.4 / (P σ), so look at it on a logarithmic axis. A wider bulk comes with more weights, more
    outliers come with more classes.

    Args:
        hessian: H of some weights.
        gauss_newton: G of the same.
        points: number of values x, evenly spaced from below the smallest eigenvalue to above the largest.
        width: of the Gaussians, as a share of the range of the eigenvalues. Below 0.8 / steps the nodes of the
            quadrature show as ripples, which the error does not tell of.
        steps: of Lanczos for each probe; so many vectors are held.
        probes: number of random probes.

    Returns:
        by operator (`hessian`, `gauss_newton`), place (0 … points − 1) and quantity.

    Example:
        >>> import torch
        >>> class Of(Curvature):
        ...     def __init__(self, *values):
        ...         self.values, self.size, self.seed = torch.tensor(values), len(values), 0
        ...     def product(self, vector):
        ...         return self.values * vector
        >>> found = spectral_density(Of(0.0, 1.0), Of(0.0, 0.0), width=0.1)
        >>> x, y = (torch.stack([found["hessian", k, name] for k in range(201)]) for name in ("eigenvalue", "density"))
        >>> round(torch.trapezoid(y, x).item(), 4), round(y.max().item(), 3)  # 0.4 / (2 · 0.1)
        (1.0, 1.995)

    Reference: arXiv 1706.04454.
    """
    found: dict[tuple[str, int, str], Tensor] = {}
    for name, matrix in (("hessian", hessian), ("gauss_newton", gauss_newton)):
        spectrum = spectral_quadrature(matrix.product, matrix.size, steps=steps, probes=probes, seed=matrix.seed)
        sigma = width * (spectrum.range() or 1.0)
        x = spectrum.grid(points, sigma)
        rows = {"eigenvalue": x} | dict(zip(("density", "density_error"), spectrum.density(x, sigma), strict=True))
        found |= {(name, k, quantity): row[k] for k in range(points) for quantity, row in rows.items()}
    return found
