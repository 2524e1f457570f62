"""States at a few places of every sequence, kept for measures that look at all of them together.

A place is a token where the model answers at tokens, and a sequence where it gives one answer for each. Which tokens is
drawn by each sequence's own number, so that the batch split changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.lens import Decoder
from layerwright.core.replay import Replay, in_float
from layerwright.core.stack import Stack
from layerwright.core.trace import Call, watch

SCOPES = ("collection", "pair")
# Sequences of which one summary each is kept.
_SEQUENCES = 4096


def collect_state(desk: Desk, stack: Stack, batch: Batch, k: int, state: Tensor) -> None:
    """Keep what is asked for of state `k` of the stream, `[B, T, d]`."""
    few = batch.few(_SEQUENCES)
    summary = _summary(stack, batch, state)
    desk.keep(f"summaries/{k}", summary[few])
    desk.keep(f"features/{k}", summary[few] if stack.head == "sequence" else _at_tokens(batch, state))


def collect(desk: Desk, stack: Stack, batch: Batch, replay: Replay, states: Iterable[Tensor]) -> None:
    """Keep everything of a batch whose states are all known."""
    if desk.wants(*SCOPES):
        for k, state in enumerate(states):
            collect_state(desk, stack, batch, k, stack.layout.tokens(state))
        collect_batch(desk, stack, batch, replay)


def collect_batch(desk: Desk, stack: Stack, batch: Batch, replay: Replay) -> None:
    """Keep what is known of the places of a batch beside the stream, and what the model's head reads there."""
    few = batch.few(_SEQUENCES)
    labels, numbers = batch.labels(stack), torch.arange(batch.size, device=batch.mask.device) + batch.first
    of_sequences = _sequence_labels(batch).to(numbers.device)
    desk.keep("sequence_labels", of_sequences[few])
    by_sequence = stack.head == "sequence"
    if by_sequence:
        desk.keep("sequences", numbers[few])
        desk.keep("positions", batch.last[few])
        desk.keep("targets", (of_sequences if labels is None else labels[:, 0])[few])
        desk.keep("token_ids", torch.full_like(numbers[few], -1))
    else:
        ids, mask = batch.ids(), batch.collected_mask
        nothing = torch.full_like(batch.collected, -1)
        desk.keep("sequences", numbers[:, None].expand(mask.shape)[mask])
        desk.keep("positions", batch.collected[mask])
        desk.keep(
            "targets", (torch.full_like(nothing, -100) if labels is None else labels.gather(1, batch.collected))[mask]
        )
        desk.keep("token_ids", (nothing if ids is None else ids.gather(1, batch.collected))[mask])
    if desk.names("head_inputs", "head_weight") and stack.head is not None and (by_sequence or stack.tokenwise):
        _collect_head(desk, stack, batch, replay, few)


def collected(desk: Desk, depth: int) -> dict[str, Tensor]:
    """The quantities, of all batches: states of all points as one tensor."""
    kept = {name: torch.cat(pieces) for name, pieces in desk.kept.items()}
    found = {name: x for name, x in kept.items() if "/" not in name}
    for name in ("features", "summaries"):
        if f"{name}/0" in kept:
            found[name] = torch.stack([kept[f"{name}/{k}"] for k in range(depth + 1)])
    return found


def _summary(stack: Stack, batch: Batch, state: Tensor) -> Tensor:
    """One state a sequence: of its last real token in causal models, the mean over its tokens otherwise."""
    if stack.causal:
        return state[torch.arange(len(state), device=state.device), batch.last]
    weight = batch.mask.to(state).unsqueeze(-1)
    return (state * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def _at_tokens(batch: Batch, state: Tensor) -> Tensor:
    rows = torch.arange(len(state), device=state.device)[:, None]
    return state[rows, batch.collected][batch.collected_mask]


def _sequence_labels(batch: Batch) -> Tensor:
    """The label of each sequence, -100 where the data gives none."""
    given = batch.inputs.get("labels") if isinstance(batch.inputs, Mapping) else None
    fits = isinstance(given, Tensor) and given.shape == (batch.size,) and not given.is_floating_point()
    return given.long() if isinstance(given, Tensor) and fits else torch.full((batch.size,), -100)


# The head


def _collect_head(desk: Desk, stack: Stack, batch: Batch, replay: Replay, few: Tensor) -> None:
    """What the last linear map of the model reads; nothing where the logits do not come from one."""
    if stack.head == "sequence":
        runs: list[Callable[[], Any]] = [lambda: replay.logits(replay.states[-1], few)]
    else:
        states = _at_tokens(batch, stack.layout.tokens(replay.states[-1]))
        decode = Decoder(stack, batch, replay.structures)
        runs = [lambda part=part: decode(part[None]) for part in states.split(decode.row * 16)]  # type: ignore[misc]
    inside = {m for block in stack.blocks for m in block.modules()}
    outside = [m for m in stack.model.modules() if m not in inside and not any(True for _ in m.children())]
    read, head = [], None
    for run in runs:
        calls: list[Call] = []
        with watch(outside, calls):
            logits = run()
        head = next((c for c in reversed(calls) if _gives(c, logits)), None)
        if head is None:
            return
        rows = head.inputs[0].flatten(0, -2)[: logits.flatten(0, -2).shape[0]]
        read.append(in_float(rows))
    if head is None:
        return
    desk.keep("head_inputs", torch.cat(read))
    if batch.first == 0:
        weight = head.module.get_parameter("weight").detach()
        # A copy: where ranks share a model, these numbers are gone when the next layer is gathered.
        desk.keep("head_weight", in_float(weight.T if weight.shape[0] == read[0].shape[-1] else weight).clone())


def _gives(call: Call, logits: Tensor) -> bool:
    """Whether a module is a matrix from states to classes."""
    weight: Any = getattr(call.module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or not call.inputs or call.output is None:
        return False
    sides = {call.inputs[0].shape[-1], logits.shape[-1]}
    return weight.ndim == 2 and set(weight.shape) == sides and call.output.shape[-1] == logits.shape[-1]
