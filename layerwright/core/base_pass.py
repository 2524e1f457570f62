"""The unchanged pass over one batch, and what the rest of the model reads off another last state in its place."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.core.batch import Batch
from layerwright.core.calls import alike, beside, structure
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, on_device, short
from layerwright.core.replay import Replay, in_float, read_logits
from layerwright.core.stack import Stack


class Answers(NamedTuple):
    """What a path answers at the answer tokens of every sequence, `[sequences, n]` each.

    Attributes:
        choice: the likeliest class.
        confidence: its probability.
        label: the right class, -100 where it is not known.
    """

    choice: Tensor
    confidence: Tensor
    label: Tensor


class BasePass:
    """The unchanged pass over one batch, and what can be read off a last state in its place."""

    def __init__(self, stack: Stack, inputs: Inputs, first: int, prefix: int) -> None:
        """Run the model once.

        Raises:
            UserError: a block hands later ones something beside the stream that depends on the stream.
        """
        inputs = on_device(inputs, stack.model)
        self.stack, self.replay = stack, Replay(stack, inputs)
        self.batch = Batch.of(stack, inputs, first, prefix, None, 0)
        self.batch.settle(stack.layout.tokens(self.replay.states[0]), self.replay.states[0])
        self.bottom = self.replay.states[0]
        self.labels = self.batch.labels(stack)
        self._few = () if stack.head is None else self.replay.few_sequences()
        self._check_extras()

    def take_states(self) -> list[Tensor]:
        """All states of the pass; they are not kept here."""
        states = list(self.replay.states)
        del self.replay.states[1:]
        self.replay.output = None
        return states

    @cached_property
    def weights(self) -> Tensor:
        """Number of labelled tokens of each sequence, `[B]`."""
        assert self.labels is not None
        return (self.labels != -100).sum(1).double().cpu()

    def losses(self, state: Tensor) -> Tensor:
        """Mean negative log-likelihood of each sequence's labels, had the tower ended in `state`: `[B]`."""
        assert self.labels is not None
        total = []
        for few in self._few:
            logits, labels = self.replay.logits(state, few), self.labels[few]
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            total.append(nats.view(labels.shape).double().sum(1).cpu())
        return torch.cat(total) / self.weights.clamp_min(1)

    def answers(self, state: Tensor, n: int) -> Answers:
        """What the model answers at each sequence's answer tokens: `[B, n]` each."""
        if self.stack.head == "sequence":
            logits = torch.cat([self.replay.logits(state, few) for few in self._few])
            places = torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
        else:
            places = self._places(n)
            logits = self._logits_at(state, places)
        confidence, choice = logits.softmax(-1).max(-1)
        label = torch.full_like(choice, -100) if self.labels is None else self.labels.gather(1, places)
        return Answers(choice.cpu(), confidence.double().cpu(), label.cpu())

    def _places(self, n: int) -> Tensor:
        """The last `n` tokens of each sequence that count, `[B, n]`; of shorter ones the first comes several times."""
        counts = self.batch.mask if self.labels is None else self.labels != -100
        counts = torch.where(counts.any(1, keepdim=True), counts, self.batch.real)
        place = torch.arange(counts.shape[1], device=counts.device).expand(counts.shape)
        last = torch.where(counts, place, -1).sort(1).values[:, -n:]
        return torch.where(last < 0, torch.where(counts, place, counts.shape[1]).amin(1, keepdim=True), last)

    def _logits_at(self, state: Tensor, places: Tensor) -> Tensor:
        """Logits `[B, n, V]` at some tokens; only they are decoded where a token's logits are read off its state."""
        sequences = torch.arange(len(places), device=places.device)
        inputs = short(self.replay.inputs, places.shape[1])
        if not self.stack.tokenwise or inputs is self.replay.inputs:
            pieces = [self.replay.logits(state, few) for few in self._few]
            return torch.cat(pieces)[sequences[:, None], places]
        tokens = self.stack.layout.tokens(state)[sequences[:, None], places]
        native = self.stack.layout.native(tokens, state)
        logits = read_logits(self.replay.tail(native, inputs), native)
        assert logits is not None
        return in_float(logits)

    def _check_extras(self) -> None:
        """What blocks hand on beside the stream is taken from the unchanged pass: it must not depend on the stream."""
        for k in sorted(self.replay.handed_on):
            other = beside(structure(self.replay.call(k, self.bottom.flip(self.stack.layout.width) + 1.0)))
            if not alike(beside(self.replay.structures[k]), other):
                raise UserError(
                    f"block {k} hands later blocks more than the stream ({len(other)} tensors that depend on it), so "
                    "that its tower has no other order; only blocks joined by the stream alone can be rearranged"
                )
