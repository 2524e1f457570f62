"""Rung 7: measured time and memory of both models, taken in turns on the same batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.inputs import Inputs, batch_size, call, rows
from layerwright.core.rungs.answers import takes
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.outcome import FAILED, MEASURED, PASSED, Outcome
from layerwright.core.stack import Stack

_ROUNDS, _TOKENS = 5, 16
_CACHES = ("past_key_values", "cache_params")


def speed(case: Case) -> Outcome:
    """Ratios of the median times, after over before, for one pass over the batch and for each token decoded after it.

    The models take turns, and which of them goes first changes from round to round, so that a machine that slows down
    slows both. A first round is thrown away. Memory: bytes of the weights, and on a GPU the peak of one pass.
    """
    asked = case.requirements.get("latency", {})
    sizes, tokens = asked.get("batch", [1]), asked.get("tokens", _TOKENS)
    numbers: dict[str, Any] = {"rounds": _ROUNDS, "tokens": tokens, "times": {}}
    ratios: dict[str, float] = {}
    for size in sizes:
        for phase, (before, after) in _medians(case, size, tokens).items():
            ratios[f"{phase} at batch {size}"] = after / before
            numbers["times"][f"{phase} at batch {size}"] = {"before": before, "after": after, "ratio": after / before}
    weights = [_weight_bytes(model) for model in (case.before, case.after)]
    numbers["weights"] = {"before": weights[0], "after": weights[1], "ratio": weights[1] / max(1, weights[0])}
    said = [f"{name} ×{value:.2f}" for name, value in ratios.items()] + [f"weights ×{numbers['weights']['ratio']:.2f}"]
    peaks = [_peak(stack, inputs) for stack, inputs in ((case.base, case.base_inputs), (case.new, case.new_inputs))]
    if all(peaks):
        numbers["peak"] = {"before": peaks[0], "after": peaks[1], "ratio": peaks[1] / peaks[0]}
        said.append(f"peak memory ×{peaks[1] / peaks[0]:.2f}")
    most = asked.get("max_ratio")
    if most is None:
        return Outcome(MEASURED, ", ".join(said), "", numbers)
    slow = [f"{name} takes {value:.2f} times as long" for name, value in ratios.items() if value > most]
    if slow:
        return Outcome(FAILED, "; ".join(slow), f"each ≤ ×{most:g}", numbers)
    return Outcome(PASSED, ", ".join(said), f"each ≤ ×{most:g}", numbers)


def _medians(case: Case, size: int, tokens: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each phase, before and after."""
    timers = [
        _timer(s, _sized(x, size), tokens) for s, x in ((case.base, case.base_inputs), (case.new, case.new_inputs))
    ]
    found: list[dict[str, list[float]]] = [{}, {}]
    for number in range(_ROUNDS + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            for phase, seconds in timers[which]():
                if number:
                    found[which].setdefault(phase, []).append(seconds)
    return {phase: (median(found[0][phase]), median(found[1][phase])) for phase in found[0] if phase in found[1]}


def _sized(inputs: Inputs, size: int) -> Inputs:
    """Rows of a batch, over and over, until there are so many."""
    return rows(inputs, torch.arange(size) % batch_size(inputs))


def _timer(stack: Stack, inputs: Inputs, tokens: int) -> Callable[[], Iterator[tuple[str, float]]]:
    """A function that runs a model once and says what each phase took."""
    cached = _is_cached(stack, inputs)

    def run() -> Iterator[tuple[str, float]]:
        if not cached:
            yield "forward", _seconds(stack.model, lambda: call(stack.model, inputs))[0]
            return
        assert isinstance(inputs, Mapping)
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        given = {} if mask is None else {"attention_mask": mask}
        seconds, output = _seconds(stack.model, lambda: stack.model(input_ids=ids, use_cache=True, **given))
        yield "prefill", seconds
        yield "decode", _seconds(stack.model, lambda: _decoded(stack.model, output, mask, tokens))[0] / tokens

    return run


def _is_cached(stack: Stack, inputs: Inputs) -> bool:
    """Whether the model decodes text from a cache of its own."""
    encoded = getattr(getattr(stack.model, "config", None), "is_encoder_decoder", False)
    if encoded or not stack.causal or stack.head != "token" or not isinstance(inputs, Mapping):
        return False
    model = stack.model
    return "input_ids" in inputs and takes(model, "use_cache") and any(takes(model, name) for name in _CACHES)


def _decoded(model: nn.Module, output: Any, mask: Tensor | None, tokens: int) -> None:
    """The likeliest next token, so many times."""
    for _ in range(tokens):
        name = next(name for name in _CACHES if getattr(output, name, None) is not None)
        given = {name: getattr(output, name)}
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            given["attention_mask"] = mask
        output = model(input_ids=output.logits[:, -1:].argmax(-1), use_cache=True, **given)


def _seconds(model: nn.Module, work: Callable[[], Any]) -> tuple[float, Any]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    for device in devices:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    for device in devices:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


# Memory


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights; what is shared counts once."""
    tensors = {(t.data_ptr(), t.numel()): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _peak(stack: Stack, inputs: Inputs) -> int:
    """The most memory that tensors take in one pass, above what is there already; 0 on a CPU, where nothing tells."""
    device = next((p.device for p in stack.model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    there = torch.cuda.memory_allocated(device)
    call(stack.model, inputs)
    return torch.cuda.max_memory_allocated(device) - there
