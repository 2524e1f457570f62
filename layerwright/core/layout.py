"""How a stream is laid out in memory, and its view as sequences of tokens.

Measures see `[batch, token, width]`. Transformers mostly compute in that layout; convolutional networks keep channels
first or last over a grid, some modules put tokens before the batch, and plain MLPs have no token axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which axes of the stream are batch and width; every other axis counts as tokens."""

    batch: int
    width: int
    ndim: int

    def tokens(self, x: Tensor) -> Tensor:
        """The stream as `[batch, token, width]`, float32 or wider."""
        x = x.movedim((self.batch, self.width), (0, -1))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x if x.dtype in (torch.float32, torch.float64) else x.float()

    def token_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        """A `[batch, token]` mask shaped so that it broadcasts against the stream `like`."""
        moved = like.movedim((self.batch, self.width), (0, -1))
        return mask.reshape(*moved.shape[:-1], 1).movedim((0, -1), (self.batch, self.width))

    def native(self, x: Tensor, like: Tensor) -> Tensor:
        """The inverse of `tokens`: `[batch, token, width]` back into the layout, dtype and device of `like`."""
        moved = like.movedim((self.batch, self.width), (0, -1))
        shape = (x.shape[0], *moved.shape[1:-1], x.shape[-1]) if self.ndim > 3 else x.shape
        x = x.reshape(shape) if self.ndim > 2 else x.reshape(x.shape[0], -1)
        return x.movedim((0, -1), (self.batch, self.width)).to(like)

    @property
    def plain(self) -> bool:
        """Whether rows of tokens can be cut and joined freely: a batch of sequences, or no token axis at all."""
        return self.ndim <= 3


def find_layout(shape: tuple[int, ...], batch: int, blocks: Iterable[nn.Module]) -> Layout:
    """Read the layout off the shape of a state: the batch axis by its size, the width by those of the weights."""
    if len(shape) == 1 or (len(shape) == 2 and shape[0] != batch):
        raise ValueError(f"a stream of shape {shape} has no batch axis of {batch}")
    batch_axis = 1 if len(shape) == 3 and shape[0] != batch and shape[1] == batch else 0
    width_axis = len(shape) - 1
    if len(shape) > 3:
        sizes = [n for block in blocks for p in block.parameters() for n in p.shape]
        # A grid is square more often than it is as wide as the stream, so that the weights tell the two apart.
        width_axis = max((1, len(shape) - 1), key=lambda axis: (sizes.count(shape[axis]), axis == 1))
    return Layout(batch_axis, width_axis, len(shape))
