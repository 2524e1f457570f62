"""Curvature of the loss by a model's weights: products of the Hessian and the Gauss-Newton matrix with vectors.

What counts as a weight, and how the model runs, is said in `core/loss.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from layerwright.core.desk import Desk
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, on_device, rows
from layerwright.core.loss import Loss as Loss
from layerwright.core.loss import derivative, differentiating, flat
from layerwright.core.memory import available_memory
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.maths.gauss_newton import softmax_curvature

SCOPE = "curvature"
WHOLE = "model"
# What the curvature is measured on: every product is a few passes over all of it.
_TOKENS = 512
# Lanczos holds some tens of vectors as long as there are weights, in float64.
_VECTORS = 40
# How far vᵀHw and wᵀHv may be apart, as a share of what they are for random vectors; rounding is 1e-4 of that.
_SYMMETRIC = 0.02


class Curvature:
    """A symmetric matrix of second derivatives of a loss by some weights, known by its products with vectors.

    Attributes:
        size: number of weights P; vectors hold them one after another, in the order of their names.
        classes: how many different labels the data holds.
        seed: for whatever is drawn about it.
    """

    def __init__(self, loss: Loss, names: Sequence[str] | None = None, seed: int = 0) -> None:
        """The matrix of all weights, or of those of these names."""
        self._loss, self._names = loss, list(loss.weights if names is None else names)
        self._shapes = [loss.weights[name].shape for name in self._names]
        self.size = sum(shape.numel() for shape in self._shapes)
        self.classes, self.seed = loss.classes, seed
        self._kept: _Tape | None = None

    def product(self, vector: Tensor) -> Tensor:
        """The matrix times a vector `[P]`, float64.

        Where the data is one portion its graph is kept for the next product, which so costs no forward pass.

        Raises:
            UserError: a part of the model has no second derivative.
        """
        pieces = vector.split([shape.numel() for shape in self._shapes])
        total = torch.zeros(self.size, dtype=torch.float64)
        with differentiating(), _second_derivatives():
            for tape in self._tapes():
                along = [v.reshape(w.shape).to(w) for v, w in zip(pieces, tape.weights)]
                total += flat(self._times(tape, along)).cpu()
        return (total / self._loss.tokens).to(vector.device)

    def check(self) -> None:
        """Hold that products are symmetric: of a part that has no second derivative, autograd may leave out a share.

        Raises:
            UserError: they are not.
        """
        generator = torch.Generator().manual_seed(self.seed)
        a, b = torch.randn(2, self.size, dtype=torch.float64, generator=generator)
        times_a, times_b = self.product(a), self.product(b)
        usual = max(float(times_a.norm() * b.norm()), float(times_b.norm() * a.norm())) / max(1, self.size) ** 0.5
        if abs(float(b @ times_a - a @ times_b)) > _SYMMETRIC * usual:
            raise _without_second_derivative("its curvature is not symmetric")

    def _tapes(self) -> Iterator[_Tape]:
        if self._kept is not None:
            yield self._kept
            return
        leaves = self._loss.leaves(self._names)
        for logits, targets in self._loss.portions(leaves):
            tape = self._taped(logits, targets, list(leaves.values()))
            if self._loss.in_one:
                self._kept = tape
            yield tape

    def _taped(self, logits: Tensor, targets: Tensor, weights: list[Tensor]) -> _Tape:
        """What products with any vector have in common."""
        raise NotImplementedError

    def _times(self, tape: _Tape, along: list[Tensor]) -> Sequence[Tensor]:
        """The product of the matrix of a portion's summed loss, by weight."""
        raise NotImplementedError


class _Tape(NamedTuple):
    """First derivatives of a portion by some weights, with the graph that they came by, and what else is needed."""

    weights: list[Tensor]
    first: Sequence[Tensor]
    beside: tuple[Tensor, ...] = ()


class Hessian(Curvature):
    """Second derivatives of the loss: H = G + R, with R from the curvature of the logits by the weights."""

    def _taped(self, logits: Tensor, targets: Tensor, weights: list[Tensor]) -> _Tape:
        nats = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return _Tape(weights, derivative(nats, weights, create_graph=True))

    def _times(self, tape: _Tape, along: list[Tensor]) -> Sequence[Tensor]:
        return derivative(_inner(tape.first, along), tape.weights)


class GaussNewton(Curvature):
    """G = Jᵀ S J / n, with J the derivative of the logits by the weights and S that of the loss by the logits, twice.

    No eigenvalue of it is negative. For the cross entropy it is also the Fisher matrix.
    """

    def _taped(self, logits: Tensor, targets: Tensor, weights: list[Tensor]) -> _Tape:
        # Jᵀ u is linear in u, so that its derivative by u, along v, is J v, whatever u is.
        u = torch.zeros_like(logits, requires_grad=True)
        return _Tape(weights, derivative((logits * u).sum(), weights, create_graph=True), (logits, u))

    def _times(self, tape: _Tape, along: list[Tensor]) -> Sequence[Tensor]:
        logits, u = tape.beside
        (tangent,) = derivative(_inner(tape.first, along), [u])
        return derivative((logits * softmax_curvature(logits.detach(), tangent)).sum(), tape.weights)


@contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "derivative" not in str(error) and "double backward" not in str(error):
            raise
        raise _without_second_derivative(str(error).splitlines()[0]) from None


def _without_second_derivative(why: str) -> UserError:
    return UserError(
        f"a part of this model has no second derivative ({why}); expected plain operations of torch; load it with "
        "attn_implementation='eager', or leave curvature out"
    )


def _inner(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys)]).sum()


# Survey


def give_curvature(
    stack: Stack,
    desk: Desk,
    batches: Iterable[Inputs],
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
    *,
    prefix: int = 0,
) -> list[str]:
    """Feed the measures of curvature with both matrices, of each distinct block's weights and of the whole model.

    Args:
        stack: the model and its tower.
        desk: where the measures are.
        batches: the data; the first sequences of it are used, about 512 tokens.
        seed: seeds what is drawn.
        progress: gets the number of groups of weights done, one more than there are distinct blocks in the end.
        prefix: leading tokens of each sequence that have no loss.

    Returns:
        notes on what could not be measured, and why.
    """
    if not desk.wants(SCOPE):
        return []
    notes = []
    try:
        loss = Loss(stack, first_sequences(stack, batches), prefix)
        loss.check()
        for kind in (Hessian, GaussNewton):
            kind(loss, seed=seed).check()
    except UserError as error:
        return [f"curvature could not be measured: {error}"]
    firsts = [stack.order.index(b) for b in range(len(stack.blocks))]
    groups = {str(k): loss.group(b) for b, k in enumerate(firsts)} | {WHOLE: list(loss.weights)}
    for name, names in groups.items():
        try:
            _give_group(desk, loss, (name, names), seed)
        except (UserError, ArithmeticError) as error:
            title = "the whole model" if name == WHOLE else f"block {name}"
            notes.append(f"curvature of {title} could not be measured: {error}")
        progress(1)
    desk.close(SCOPE, None)
    return notes


def first_sequences(stack: Stack, batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """The first sequences, at least one and together at most about 512 tokens of the stream."""
    left = _TOKENS
    for inputs in batches:
        inputs = on_device(inputs, stack.model)
        with undisturbed(stack.model), torch.no_grad():
            tokens = stack.layout.tokens(Replay(stack, rows(inputs, slice(0, 1))).states[0]).shape[1]
        count = min(batch_size(inputs), max(left // tokens, int(left == _TOKENS)))
        if not count:
            return
        left -= count * tokens
        yield rows(inputs, slice(0, count))


def _give_group(desk: Desk, loss: Loss, group: tuple[str, list[str]], seed: int) -> None:
    name, names = group
    hessian, gauss_newton = Hessian(loss, names, seed), GaussNewton(loss, names, seed)
    if not hessian.size:
        raise UserError("it has no weights in floating point")
    needed = 8 * _VECTORS * hessian.size
    if needed > available_memory() // 2:
        raise UserError(
            f"{_VECTORS} vectors as long as its {hessian.size} weights take {needed / 2**30:.1f} GB, more than half of "
            "the memory that is free"
        )
    desk.give(SCOPE, (name,), {"hessian": hessian, "gauss_newton": gauss_newton})
