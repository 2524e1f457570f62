"""One batch on its way through the passes: inputs, which tokens count, which are sampled, and what each should say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from layerwright.core.inputs import Inputs, batch_size, real_tokens, rows
from layerwright.core.stack import Stack

# Tokens that the lens decodes, over all sequences.
LENS_TOKENS = 256
# Tokens whose states are kept, over all sequences.
COLLECTED = 2048


class Batch:
    """A batch with the number of its first sequence, which seeds everything random about it.

    After `settle`: `mask` `[B, T]` says which tokens count (no padding, no prefix), `last` `[B]` is each sequence's
    last real token, `sampled` `[B, n]` are token positions for the lens, drawn by the sequence's own number so that
    another batch split draws the same.
    """

    def __init__(self, inputs: Inputs, first: int, prefix: int, sample: int, seed: int, side: str = "") -> None:
        """Inputs of the model; `first` is the number of the first sequence in the whole data.

        `side` is put before the names of the token ids and their mask: `decoder_` for the tower of a decoder that has
        its own.
        """
        self.inputs, self.first, self.prefix, self.side = inputs, first, prefix, side
        self.size = batch_size(inputs)
        self._sample, self._seed = sample, seed
        self.native: Tensor
        self.mask: Tensor
        self.real: Tensor
        self.last: Tensor
        self.sampled: Tensor
        self.sampled_mask: Tensor

    @classmethod
    def of(cls, stack: Stack, inputs: Inputs, first: int, prefix: int, sequences: int | None, seed: int) -> Batch:
        """A batch of a survey of `sequences` sequences, where their number is known."""
        own = isinstance(inputs, Mapping) and "decoder_input_ids" in inputs and stack.causal
        share = LENS_TOKENS / (sequences or 32)
        return cls(inputs, first, prefix, math.ceil(share), seed, "decoder_" if own else "")

    def settle(self, tokens: Tensor, native: Tensor) -> None:
        """Learn the shape of the stream, `[B, T, d]`, and place everything in it."""
        self.native = native
        self.real = real_tokens(self.inputs, tokens, self.side + "attention_mask")
        place = torch.cumsum(self.real, 1)
        self.mask = self.real & (place > self.prefix)
        positions = torch.arange(self.real.shape[1], device=tokens.device)
        self.last = torch.where(self.real, positions, 0).amax(1)
        # Of long sequences one token of sixteen: the lens must stay cheap beside the pass itself.
        self.sampled, self.sampled_mask = self._draw(self._sample, 16, 0)

    def _draw(self, sample: int, thin: int, kind: int) -> tuple[Tensor, Tensor]:
        """Positions `[B, n]` of so many tokens of each sequence that count, and which of them are there."""
        counts = [min(sample, n, max(16, n // thin)) for n in self.mask.sum(1).tolist()]
        drawn = torch.zeros(self.size, max(1, *counts), dtype=torch.long, device=self.mask.device)
        known = torch.zeros_like(drawn, dtype=torch.bool)
        for b in range(self.size):
            generator = generator_for(self._seed, self.first + b, kind)
            places = self.mask[b].nonzero().flatten().cpu()
            chosen = places[torch.randperm(len(places), generator=generator)[: counts[b]]].to(self.mask.device)
            drawn[b, : len(chosen)] = chosen
            known[b, : len(chosen)] = True
        return drawn, known

    @property
    def collected(self) -> Tensor:
        """Positions `[B, n]` of the tokens whose states are kept; drawn only where a measure asks for them."""
        return self._collection[0]

    @property
    def collected_mask(self) -> Tensor:
        """Which of them are there."""
        return self._collection[1]

    @cached_property
    def _collection(self) -> tuple[Tensor, Tensor]:
        # No block has this number, so that no other draw for the sequence is the same.
        return self._draw(COLLECTED * self._sample // LENS_TOKENS, 1, -1)

    def few(self, most: int) -> Tensor:
        """The places in the batch of the sequences whose number in the data is below a bound."""
        return torch.arange(max(0, min(self.size, most - self.first)), device=self.mask.device)

    def labels(self, stack: Stack) -> Tensor | None:
        """The class that the logits at each token (or of each sequence, `[B, 1]`) should name, -100 for none."""
        given = self.inputs.get("labels") if isinstance(self.inputs, Mapping) else None
        if stack.head == "sequence":
            return given.view(-1, 1) if isinstance(given, Tensor) and given.shape[:1] == (self.size,) else None
        if stack.head != "token":
            return None
        if not stack.causal:
            return given if isinstance(given, Tensor) and given.shape == self.real.shape else None
        # One label a sequence says nothing of its tokens.
        by_token = isinstance(given, Tensor) and given.shape != (self.size,)
        ids = given if by_token else self.ids()
        if ids is None or ids.shape != self.real.shape:
            return None
        following = torch.full_like(ids, -100)
        following[:, :-1] = ids[:, 1:].masked_fill(~self.real[:, 1:], -100)
        return following.masked_fill(~self.mask, -100)

    def ids(self) -> Tensor | None:
        """The token ids `[B, T]`, or None where the input is not of tokens."""
        x: Any = self.inputs.get(self.side + "input_ids") if isinstance(self.inputs, Mapping) else self.inputs
        return x if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point() else None

    def part(self, start: int, stop: int) -> Batch:
        """Some sequences of the batch."""
        inputs = rows(self.inputs, slice(start, stop))
        return Batch(inputs, self.first + start, self.prefix, self._sample, self._seed, self.side)


def generator_for(seed: int, sequence: int, block: int = 0) -> torch.Generator:
    """Random numbers that belong to one sequence (and block), whatever batch it comes in."""
    return torch.Generator().manual_seed(hash((seed, sequence, block)) % 2**63)
