"""The backward walk: gradients of the loss by the stream, and each block's Jacobian, one block's graph at a time.

Blocks are run again from their noted states with gradients on, top to bottom, so that memory holds the activations of
one block only. No gradient reaches a parameter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from layerwright.core.batch import Batch, generator_for
from layerwright.core.desk import Desk
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack


class BackwardPass:
    """The gradient and Jacobian measures on one batch."""

    def __init__(self, stack: Stack, desk: Desk, batch: Batch, replay: Replay, seed: int) -> None:
        """Prepare; `run` does it."""
        self.stack, self.desk, self.batch, self.replay, self.seed = stack, desk, batch, replay, seed

    def run(self, progress: Callable[[int], None]) -> None:
        """Walk down the tower; `progress` gets the number of blocks done."""
        gradient = self.top() if self.desk.wants("gradient") else None
        for k in reversed(range(self.stack.depth)):
            gradient = self.step(k, gradient)
            progress(1)
        self.close()

    def step(self, k: int, gradient: Tensor | None) -> Tensor | None:
        """Block application `k`: from the gradient by the state after it to that by the state before it."""
        tokens = self.stack.layout.tokens
        with torch.enable_grad():
            state = self.replay.states[k].detach().requires_grad_()
            after = self.replay.block(k, state)
        if gradient is not None:
            update = tokens(self.replay.states[k + 1]) - tokens(state.detach())
            given = {"update": update, "gradient": tokens(gradient) * self._per_token()}
            self.desk.give("gradient", (k,), given)
            (gradient,) = torch.autograd.grad(after, state, gradient, retain_graph=self.desk.wants("jacobian"))
        if self.desk.wants("jacobian"):
            self._jacobian(k, state, after)
        return gradient

    def close(self) -> None:
        """End the batch, or the block."""
        self.desk.close("gradient", self.batch.mask)
        self.desk.close("jacobian", None)

    def top(self) -> Tensor | None:
        """Derivative of the summed loss by the last state, or None where nothing says what the output should be.

        A few sequences at a time: logits and their gradient are larger than any state.
        """
        labels = self.batch.labels(self.stack)
        if labels is None:
            return None
        state = self.replay.states[-1].detach().requires_grad_()
        gradient = torch.zeros_like(state)
        for few in self.replay.few_sequences():
            with torch.enable_grad():
                logits = self.replay.logits(state, few).flatten(0, 1)
                targets = labels[few].flatten()
                loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            gradient += torch.autograd.grad(loss, state)[0]
        return gradient

    def _per_token(self) -> Tensor:
        """Turns a sum over tokens that count into a change of the mean loss over tokens that have a label.

        Zero at the first token of a causal model, which a skip leaves alone.
        """
        labels = self.batch.labels(self.stack)
        assert labels is not None
        weight = self.batch.mask.sum(1) / (labels != -100).sum(1).clamp_min(1)
        moved = torch.cumsum(self.batch.real, 1) > 1 if self.stack.causal else self.batch.real
        return (weight[:, None] * moved)[..., None]

    def _jacobian(self, k: int, state: Tensor, after: Tensor) -> None:
        probe = torch.zeros(self.stack.layout.tokens(state).shape, device=state.device)
        for b, real in enumerate(self.batch.real):  # drawn for the real tokens only, so that padding changes nothing
            generator = generator_for(self.seed, self.batch.first + b, k)
            probe[b, real] = torch.randn(int(real.sum()), probe.shape[-1], generator=generator).to(probe.device)
        # In half precision the block sees a rounded probe: compare with that, so that the identity is at distance 0.
        native = self.stack.layout.native(probe, after)
        probe = self.stack.layout.tokens(native)
        (back,) = torch.autograd.grad(after, state, native)
        pullback = self.stack.layout.tokens(back) * self.batch.real[..., None]
        self.desk.give("jacobian", (k,), {"probe": probe, "pullback": pullback})
