"""The loss along the straight line between two models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, on_device
from layerwright.core.loss import Loss
from layerwright.core.quiet import unwrap
from layerwright.core.replay import in_float
from layerwright.core.stack import Stack


class LinearPath(NamedTuple):
    """Loss at points of a straight line.

    Attributes:
        positions: t, `[points]`, 0 at the first model and 1 at the second.
        losses: nat/token, `[points]`, float64.
    """

    positions: Tensor
    losses: Tensor

    @property
    def barrier(self) -> float:
        """How far the loss rises above the line between its ends, at most: max_t L(t) − ((1 − t) L(0) + t L(1)).

        Example:
            >>> LinearPath(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 3.0, 2.0])).barrier
            1.5
        """
        first, last = self.losses[0], self.losses[-1]
        return float((self.losses - (first + self.positions.to(self.losses) * (last - first))).max())


def linear_path(
    model_a: nn.Module, model_b: nn.Module, batches: Iterable[Inputs], points: int = 11, *, blocks: str | None = None
) -> LinearPath:
    """The mean loss over labelled tokens on the straight line between two models of one architecture.

        L(t) = loss((1 − t) w_a + t w_b),   t = 0 … 1

    Minima that large and small batches lead to differ in sharpness, and yet no rise of the loss need stand between
    them. Running statistics of batch norms go along the line as the weights do. Both models are left as they are; one
    copy of the weights is made at a time.

    Args:
        model_a: the model at t = 0.
        model_b: the one at t = 1.
        batches: data with labels, or token ids for a causal language model.
        points: evenly spaced values of t, both ends among them, at least 2.
        blocks: path of the tower of blocks, where the model has several.

    Raises:
        UserError: fewer than two points, no data, or weights of other names or shapes.

    Reference: arXiv 1706.04454.
    """
    given = list(batches)
    if points < 2 or not given:
        raise UserError(f"got {points} points and {len(given)} batches; expected at least 2 points and some data")
    start, end = (_tensors(unwrap(model)) for model in (model_a, model_b))
    other = sorted(name for name in {*start, *end} if _shape(start, name) != _shape(end, name))
    if other:
        name = other[0]
        raise UserError(
            f"the models differ in {len(other)} weights: {name} is {_shape(start, name)} in the first and "
            f"{_shape(end, name)} in the second; expected two models of one architecture"
        )
    loss = Loss(Stack.find(model_a, on_device(given[0], model_a), blocks), given)
    positions = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
    losses = []
    for t in positions.tolist():
        losses.append(loss.value({name: torch.lerp(x, end[name].to(x), t) for name, x in start.items()}))
    return LinearPath(positions, torch.tensor(losses, dtype=torch.float64))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers that a mean can be taken of."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: in_float(x.detach()) for name, x in named.items() if x.is_floating_point()}


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
