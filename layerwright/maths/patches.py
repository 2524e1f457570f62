"""What the kernel of a convolution meets at each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def patches(
    x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The numbers under a kernel, of all channels, at each place where it stands.

    Args:
        x: `[B, C, *space]`, of any number of axes in space.
        size: of the kernel, along each.
        stride: between two places.
        padding: zeros on both sides.
        dilation: from one number under the kernel to the next.

    Returns:
        `[B, T, C · k]`, channels outermost, as in the weight of a convolution.

    Example:
        >>> patches(torch.tensor([[[1.0, 2.0, 3.0]]]), [2], [1], [1], [1])[0].tolist()
        [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 0.0]]
    """
    space = len(size)
    if space <= 2:  # torch has this one, faster
        lift = 2 - space
        options = (tuple(given) + (one,) * lift for given, one in ((size, 1), (dilation, 1), (padding, 0), (stride, 1)))
        return torch.nn.functional.unfold(x[(..., *[None] * lift)], *options).mT
    x = torch.nn.functional.pad(x, [side for n in reversed(padding) for side in (n, n)])
    for axis, (k, step, gap) in enumerate(zip(size, stride, dilation), start=2):
        x = x.unfold(axis, gap * (k - 1) + 1, step)[..., ::gap]
    places = x.movedim(1, 1 + space)  # [B, *places, C, *k]
    return places.flatten(1 + space).flatten(1, space)
