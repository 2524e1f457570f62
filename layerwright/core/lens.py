"""The logit lens: states decoded by the rest of the model, in bounded memory whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from layerwright.core.batch import Batch
from layerwright.core.desk import Desk, Numbers, join
from layerwright.core.inputs import rows, short
from layerwright.core.reduce import Key
from layerwright.core.replay import Replay, in_float, read_logits, tail
from layerwright.core.stack import Stack
from layerwright.maths.similarity import relative_error

# Logits decoded at once: 4 MB in float32. Much larger temporaries are slower, as their pages come fresh each time.
_AT_ONCE = 2**20
_ROW = 16


def lens_of_tokens(
    stack: Stack, desk: Desk, batch: Batch, sampled: list[Tensor], structures: list[Any], final: Tensor
) -> float:
    """Feed the lens measures where every token's state can be decoded alone; gives the error of lens(h_L) = logits.

    Args:
        stack: the model and its tower.
        desk: the measures.
        batch: the batch, which says where the tokens were sampled.
        sampled: every state of the stream at the sampled tokens, `[B, n, d]` each.
        structures: what the blocks returned beside the stream.
        final: the model's own logits at the sampled tokens, `[B, n, V]`.
    """
    final = final.flatten(0, 1)
    states = torch.stack(sampled).flatten(1, 2)
    decode = Decoder(stack, batch, structures)
    room = max(1, _AT_ONCE // (final.shape[-1] * decode.row))
    pieces: dict[tuple[int, str, Key], list[Numbers]] = {}

    def give(points: list[int], lens: Tensor, known: Tensor) -> None:
        for (name, more), numbers in desk.evaluate("lens", {"lens_logits": lens, "final_logits": known}).items():
            for k, values in zip(points, numbers.values, strict=True):
                pieces.setdefault((k, name, more), []).append(Numbers(values))

    for piece in torch.arange(len(final), device=final.device).split(decode.row * max(1, room // len(states))):
        known = final[piece]
        for points in torch.arange(stack.depth, device=final.device).split(room):
            give(points.tolist(), decode(states[points][:, piece]), known)
        # The last state decodes to the model's own logits, which is tested below on a few tokens.
        give([stack.depth], known[None], known)
    for (k, name, more), numbers in pieces.items():
        desk.add(name, (k, *more), Numbers(join(numbers).values.view(batch.sampled.shape)))
    desk.close("lens", batch.sampled_mask)
    few = slice(0, decode.row)
    return relative_error(decode(states[-1:, few])[0], final[few])


def lens_of_sequences(desk: Desk, batch: Batch, replay: Replay) -> float:
    """The same where whole sequences are needed: the model has one answer a sequence, or mixes tokens on the way."""
    n = torch.arange(batch.size, device=batch.sampled.device)[:, None]

    def answers(output: Any, state: Tensor) -> Tensor:
        logits = read_logits(output, state)
        assert logits is not None
        return in_float(logits if logits.ndim == 2 else logits[n, batch.sampled])

    final = lens = answers(replay.output, replay.states[-1])
    for k, state in enumerate(replay.states):
        lens = answers(replay.tail(state), state)
        for (name, more), numbers in desk.evaluate("lens", {"lens_logits": lens[None], "final_logits": final}).items():
            desk.add(name, (k, *more), Numbers(numbers.values[0]))
    desk.close("lens", None if final.ndim == 2 else batch.sampled_mask)
    return relative_error(lens, final)


def lens_of_states(
    stack: Stack, desk: Desk, batch: Batch, replay: Replay, structures: list[Any], states: Iterable[Tensor]
) -> float:
    """The same from all states of a tower that ran block by block, whichever way its tokens are decoded.

    Args:
        stack: the model and its tower.
        desk: the measures.
        batch: the batch.
        replay: its pass, whose last state is known.
        structures: what the blocks returned beside the stream.
        states: of the stream, read one after another.
    """
    if not stack.tokenwise:
        replay.output = replay.tail(replay.states[-1])
        return lens_of_sequences(desk, batch, replay)
    sampled = [sampled_tokens(stack.layout.tokens(state), batch) for state in states]
    final = [
        replay.logits(replay.states[-1], few)[torch.arange(len(few))[:, None], batch.sampled[few]]
        for few in replay.few_sequences()
    ]
    return lens_of_tokens(stack, desk, batch, sampled, structures, torch.cat(final))


def sampled_tokens(state: Tensor, batch: Batch) -> Tensor:
    """The sampled tokens of a state `[B, T, d]`: `[B, n, d]`."""
    return state[torch.arange(len(state), device=state.device)[:, None], batch.sampled]


class Decoder:
    """Logits of loose states: the rest of the model, run on rows of tokens of a kind that it knows."""

    def __init__(self, stack: Stack, batch: Batch, structures: list[Any]) -> None:
        self.stack, self.batch, self.structures = stack, batch, structures
        # Where inputs are token ids any short row will do; other inputs keep their own length.
        cut = short(batch.inputs, _ROW)
        self.row = min(_ROW, batch.mask.shape[1]) if cut is not batch.inputs else batch.mask.shape[1]
        self.inputs = short(batch.inputs, self.row)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits `[L, n, V]` of states `[L, n, d]`."""
        flat = states.flatten(0, 1)
        count = -(-len(flat) // self.row)
        padded = torch.cat([flat, flat[-1:].expand(count * self.row - len(flat), -1)])
        inputs = rows(self.inputs, torch.arange(count, device=states.device) % len(self.batch.mask))
        native = self.stack.layout.native(padded.view(count, self.row, -1), self.batch.native)
        logits = read_logits(tail(self.stack, self.structures, native, inputs), native)
        assert logits is not None
        return in_float(logits).flatten(0, 1)[: len(flat)].unflatten(0, states.shape[:2])
