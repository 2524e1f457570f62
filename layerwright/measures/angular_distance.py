"""The angle that a stretch of blocks turns the stream."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.similarity import angle


@measure(unit="1", range=(0, 1), paper="2403.17887", index=("block", "gap"))
def angular_distance(last_token: Tensor) -> dict[tuple[int, int], Tensor]:
    """Angle between the stream before a block and the stream `gap` blocks later, over π, at the last token.

    Mean over sequences of

        arccos(cos(h_l, h_{l+gap})) / π

    at each sequence's last real token, for every block l and every gap. A stretch with a small angle is the first
    candidate for removal.

    Args:
        last_token: all states at the last token, `[L + 1, batch, width]`.

    Returns:
        by (block, gap): `[batch]`, unit 1, in [0, 1]; 1/2 for orthogonal states.

    Example:
        >>> import torch
        >>> angular_distance(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]]))[0, 2]
        tensor([1.])

    Reference: arXiv 2403.17887, 2502.05795.
    """
    points = len(last_token)
    found: dict[tuple[int, int], Tensor] = {}
    for block in range(points - 1):
        angles = angle(last_token[block].expand(points - block - 1, -1, -1), last_token[block + 1 :])
        found.update({(block, gap + 1): a for gap, a in enumerate(angles)})
    return found
