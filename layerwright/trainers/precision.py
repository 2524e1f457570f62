"""Weights stored in half precision are trained in float32, and go back to what they were."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; what stands in several places comes once, by its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


class Widened:
    """A model whose half-precision weights are float32 for a while.

    An update smaller than a weight's last digit would be lost in bfloat16, which has two or three of them. Tensors keep
    their identity, so that a weight in two places stays one weight.

    Example:
        >>> model = nn.Linear(2, 1, dtype=torch.bfloat16)
        >>> widened = Widened(model)
        >>> before = model.weight.dtype
        >>> widened.narrow()
        >>> before, model.weight.dtype
        (torch.float32, torch.bfloat16)
    """

    def __init__(self, model: nn.Module) -> None:
        """Widen."""
        self._stored = [(x, x.dtype) for _, x in numbers(model) if x.dtype in _HALF]
        for x, _ in self._stored:
            x.data = x.data.float()

    def round(self) -> None:
        """Let every weight be a number that its stored dtype has."""
        for x, dtype in self._stored:
            x.data.copy_(x.data.to(dtype))

    def narrow(self) -> None:
        """Back to the stored dtypes."""
        for x, dtype in self._stored:
            x.grad = None
            x.data = x.data.to(dtype)
