"""The backward walk: gradients of the loss by the stream and by weight matrices, and each block's Jacobian.

Blocks are run again from their noted states with gradients on, top to bottom, one block's graph at a time, so that
memory holds the activations of one block only. No gradient reaches a parameter: that of a matrix is known from what it
reads and from the derivative by what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import combinations

import torch
from torch import Tensor

from layerwright.core.batch import Batch, generator_for
from layerwright.core.desk import Desk, Numbers, spread
from layerwright.core.errors import UserError
from layerwright.core.factors import FactorWatch
from layerwright.core.reduce import Key
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.maths.gradient import MatrixGradient

Waiting = dict[int, Mapping[str, MatrixGradient]]
OF_MATRICES = ("matrix", "matrix_pair")
OF_LOSS = ("gradient", *OF_MATRICES)
SCOPES = (*OF_LOSS, "jacobian")


class BackwardPass:
    """The measures of gradients and Jacobians on one batch.

    Attributes:
        losses: mean loss of each sequence, `[B]`, once the top was reached.
        above: the gradients of the matrices of the block above, where they are compared with it.
        waiting: by block application, those of the last sequence, where its pair is in the next batch.
    """

    def __init__(
        self, stack: Stack, desk: Desk, batch: Batch, replay: Replay, seed: int, waiting: Waiting | None = None
    ) -> None:
        """Prepare; `run` does it. Passes of one batch after another hand on what is `waiting`."""
        self.stack, self.desk, self.batch, self.replay, self.seed = stack, desk, batch, replay, seed
        self.losses: Tensor | None = None
        self.above: Mapping[str, MatrixGradient] = {}
        self.waiting: Waiting = {} if waiting is None else waiting

    def run(self, progress: Callable[[int], None]) -> None:
        """Walk down the tower; `progress` gets the number of blocks done."""
        gradient = self.top() if self.desk.wants(*OF_LOSS) else None
        for k in reversed(range(self.stack.depth)):
            gradient = self.step(k, gradient)
            progress(1)
        self.close()

    def step(self, k: int, gradient: Tensor | None) -> Tensor | None:
        """Block application `k`: from the gradient by the state after it to that by the state before it."""
        tokens = self.stack.layout.tokens
        watch = None
        if gradient is not None and self._few:
            block = self.stack.blocks[self.stack.order[k]]
            watch = FactorWatch(block, self.stack.layout, self.batch.size, self.batch.real.shape[1])
        with torch.enable_grad(), nullcontext() if watch is None else watch.watching():
            state = self.replay.states[k].detach().requires_grad_()
            after = self.replay.block(k, state)
        if gradient is not None or self.desk.wants("jacobian"):
            _check_differentiable(after, f"block {k}")
        if gradient is not None:
            update = tokens(self.replay.states[k + 1]) - tokens(state.detach())
            given = {"update": update, "gradient": tokens(gradient) * self._per_token()}
            self.desk.give("gradient", (k,), given)
            wanted = [state, *([] if watch is None else watch.leaves)]
            (gradient, *_) = torch.autograd.grad(
                after, wanted, gradient, retain_graph=self.desk.wants("jacobian"), allow_unused=len(wanted) > 1
            )
        if watch is not None:
            found = watch.gradients(1 / self._labelled())
            self._matrices(k, {name: gradients.of(slice(0, self._few)) for name, gradients in found.items()})
        if self.desk.wants("jacobian"):
            self._jacobian(k, state, after)
        return gradient

    def close(self) -> None:
        """End the batch, or the block."""
        self.desk.close("gradient", self.batch.mask)
        for scope in (*OF_MATRICES, "jacobian"):
            self.desk.close(scope, None)

    def top(self) -> Tensor | None:
        """Derivative of the summed loss by the last state, or None where nothing says what the output should be.

        A few sequences at a time: logits and their gradient are larger than any state.
        """
        labels = self.batch.labels(self.stack)
        if labels is None:
            return None
        state = self.replay.states[-1].detach().requires_grad_()
        gradient, losses = torch.zeros_like(state), []
        for few in self.replay.few_sequences():
            with torch.enable_grad():
                logits, targets = self.replay.logits(state, few).flatten(0, 1), labels[few].flatten()
                nats = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
                total = nats.sum()
            _check_differentiable(total, "a loss")
            gradient += torch.autograd.grad(total, state)[0]
            losses.append(nats.detach().view(len(few), -1).sum(1))
        self.losses = torch.cat(losses) / self._labelled()
        return gradient

    def _labelled(self) -> Tensor:
        """How many tokens of each sequence have a label, `[B]`, at least 1."""
        labels = self.batch.labels(self.stack)
        assert labels is not None
        return (labels != -100).sum(1).clamp_min(1)

    def _matrices(self, k: int, found: Mapping[str, MatrixGradient]) -> None:
        """Feed the measures of the gradients of a block's matrices."""
        if self.desk.wants("matrix"):
            assert self.losses is not None
            told = {"loss": self.losses[: self._few], "sequence_numbers": self._numbers()}
            for name, gradient in found.items():
                self.desk.give("matrix", (k, name), told | {"matrix_gradient": gradient})
        if self.desk.wants("matrix_pair"):
            self._pairs(k, found)

    def _pairs(self, k: int, found: Mapping[str, MatrixGradient]) -> None:
        """Feed the measures of two gradients: by other matrices, by those of the block above, of other sequences."""
        numbers = self._numbers()

        def give(one: str, other: str, pair: tuple[MatrixGradient, MatrixGradient]) -> None:
            given = {"matrix_gradient": pair[0], "other_gradient": pair[1], "sequence_numbers": numbers}
            self.desk.give("matrix_pair", (k, one, other), given)

        for one, other in combinations(found, 2):
            if found[one].shape == found[other].shape:
                give(one, other, (found[one], found[other]))
        for name in found:
            if name in self.above and found[name].shape == self.above[name].shape:
                give(name, "next block", (found[name], self.above[name]))
        earlier = self.waiting.pop(k, {})
        for name, gradient in found.items():
            self._sequences_before((k, name, "sequence before"), gradient, earlier.get(name))
        if (self.batch.first + self._few) % 2:
            self.waiting[k] = {name: gradient.last() for name, gradient in found.items()}
        self.above = found

    def _sequences_before(self, key: Key, gradient: MatrixGradient, earlier: MatrixGradient | None) -> None:
        """Each sequence of an odd number beside the one before it, which for the first may be that of another batch."""
        first, size = self.batch.first % 2, self._few
        pairs = [(slice(1 + first, size, 2), gradient.of(slice(first, max(size - 1, first), 2)))]
        if first and earlier is not None:
            pairs.append((slice(0, 1), earlier))
        found: dict[tuple[str, Key], list[tuple[slice, Numbers]]] = {}
        for places, before in pairs:
            given = {
                "matrix_gradient": gradient.of(places), "other_gradient": before,
                "sequence_numbers": self._numbers()[places],
            }  # fmt: skip
            for row, numbers in self.desk.evaluate("matrix_pair", given).items():
                found.setdefault(row, []).append((places, numbers))
        for (name, more), pieces in found.items():
            self.desk.add(name, (*key, *more), spread(pieces, size))

    @property
    def _few(self) -> int:
        """How many sequences of the batch have their matrices measured, the first ones of the data."""
        return len(self.batch.few(self.desk.first(*OF_MATRICES)))

    def _numbers(self) -> Tensor:
        """Number of each of these in the data."""
        return torch.arange(self._few, device=self.batch.mask.device) + self.batch.first

    def _per_token(self) -> Tensor:
        """Turns a sum over tokens that count into a change of the mean loss over tokens that have a label.

        Zero at the first token of a causal model, which a skip leaves alone.
        """
        weight = self.batch.mask.sum(1) / self._labelled()
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


def _check_differentiable(x: Tensor, what: str) -> None:
    """Refuse what autograd finds no way back from, as behind a `detach`, a rounding to integers or an argmax."""
    if not x.requires_grad:
        raise UserError(
            f"got {what} that is not differentiable by the stream; expected one with a gradient: leave measures of "
            "gradients and Jacobians out (--skip), or change the model"
        )
