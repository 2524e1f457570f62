"""How much of a tower is paths through one block, through two, through three."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.registry import BY_NAME, measure
from layerwright.maths.residual_expansion import residual_expansion as expansion
from layerwright.maths.residual_expansion import truncations

_MOST = 6


@measure(unit={"energy": "1", "explained": "1"}, range=(None, None), tier=BY_NAME, paper="2510.03470", index=("order",))
def residual_expansion(
    branches: Sequence[Callable[[Tensor], Tensor]], bottom: Tensor, top: Tensor, *, order: int = 3
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """How much of what the tower adds to the stream is paths through one block, through two, through three.

    With every branch f_l times λ, the stream after the tower is a power series in λ. Its order k is the paths through
    k blocks,

        h_L(λ) = Σ_k λ^k order_k,   order_0 = h_0,   order_1 = Σ_l f_l(h_0),   order_2 = Σ_{l<m} f_m′ f_l (h_0), …
        energy = ‖order_k‖² / ‖h_L − h_0‖²,   explained = 1 − ‖h_L − Σ_{j≤k} order_j‖² / ‖h_L − h_0‖²

    mean over tokens. Where order 1 explains nearly all, the blocks act side by side; where each order explains more,
    depth is used as so many steps. Energies that grow with the order and an `explained` far below 0 say that the series
    does not converge at λ = 1: the blocks answer to what earlier ones wrote and not to h_0, as where updates are large
    beside the embeddings and each block begins with a norm. Costs about 6 forward passes for order 3, 11 for order 4.

    Args:
        branches: f_l, what each block adds to a state, as a function of it.
        bottom: h_0, `[batch, token, width]`.
        top: h_L, same shape.
        order: the last one, 1 to 6.

    Returns:
        by order: `energy`, at least 0, and `explained`, at most 1 and 0 for order 0, each `[batch, token]` with the
        tokens to which the tower adds anything.

    Raises:
        UserError: the order cannot be used.

    Example:
        >>> import torch
        >>> h = torch.ones(1, 1, 1)
        >>> found = residual_expansion([lambda x: x, lambda x: x], h, 4 * h, order=2)  # 4 = 1 + 2 + 1
        >>> [round(found[k, "explained"][0].item(), 4) for k in range(3)]
        [0.0, 0.8889, 1.0]

    Reference: arXiv 2510.03470.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= _MOST:
        raise UserError(f"got residual_expansion.order={order}; expected a whole number from 1 to {_MOST}")
    energy, explained = truncations(expansion(branches, bottom, order), top)
    moved = ~explained[0].isnan()
    return {
        (k, name): (values[k], moved)
        for name, values in (("energy", energy), ("explained", explained))
        for k in range(order + 1)
    }
