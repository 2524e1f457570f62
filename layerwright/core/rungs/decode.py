"""Rung 3: a model that reads with a cache, beside padding or beside other rows reads the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layerwright.core.inputs import Inputs, batch_size, call, real_tokens, rows
from layerwright.core.load import first_line
from layerwright.core.replay import watch_blocks
from layerwright.core.rungs.answers import largest, mask_name, read_answer, scale, takes
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.outcome import FAILED, PASSED, Outcome
from layerwright.core.stack import Stack

_TOKENS, _LONGEST, _PADDING = 32, 128, 3
# An error of the new model counts from here on, as a multiple of the base's own.
_WORSE = 10.0
_TITLES = {
    "tokens": "token by token from a cache",
    "chunks": "in pieces from a cache",
    "padding": "behind padding",
    "rows": "row by row",
}


class Read(NamedTuple):
    """One way of reading a batch: the answers and the states after each block, at the tokens that are compared."""

    answers: Tensor
    states: list[Tensor]


class Error(NamedTuple):
    """How far a way of reading is from the plain one, over the largest number, and the first block that differs."""

    size: float
    block: int | None = None
    raised: str = ""


def decode(case: Case) -> Outcome:
    """Read the same tokens in other ways, and hold the answers against those of one plain pass.

    What the base gets wrong as well is not laid at the edit's door: its own error is measured wherever the new model
    is off, and ten times as much is allowed.
    """
    wanted = int(case.requirements.get("decode", {}).get("tokens", _TOKENS))
    ways, left_out = _ways(case.new, case.new_inputs, wanted)
    errors, excused = {}, []
    numbers: dict[str, Any] = {"limit": case.tolerance, "base": {}}
    for name, way in ways.items():
        error = errors[name] = _measured(case.new, way, case.tolerance)
        numbers[name] = error.size
        if error.size <= case.tolerance:
            continue
        base = _measured(case.base, _ways(case.base, case.base_inputs, wanted)[0].get(name), case.tolerance)
        numbers["base"][name] = base.size
        if error.size > max(case.tolerance, _WORSE * base.size):
            return Outcome(FAILED, _blame(case, name, error, base), f"{case.tolerance:g} × largest", numbers)
        excused.append(f"{_TITLES[name]} the base is off as well ({_size(base)})")
    good = [_TITLES[name] for name, error in errors.items() if error.size <= case.tolerance]
    worst = max((e.size for e in errors.values() if e.size <= case.tolerance), default=0.0)
    said = [f"the same {', '.join(good)}: error {worst:.1e}"] if good else []
    return Outcome(PASSED, "; ".join(said + excused + left_out), f"{case.tolerance:g} × largest", numbers)


def _blame(case: Case, name: str, error: Error, base: Error) -> str:
    where = "" if error.block is None else f", first at {case.place(error.block)}"
    what = error.raised or f"the new model is {error.size:.2g} off one plain pass{where}"
    return f"{_TITLES[name]} {what}; the base: {_size(base)}"


def _size(error: Error) -> str:
    return error.raised or f"{error.size:.1e}"


# Ways of reading

Way = Callable[[], Iterator[tuple[Read, Read]]]


def _measured(stack: Stack, way: Way | None, tolerance: float) -> Error:
    """The error of a way of reading; what it raises counts as infinitely large."""
    if way is None:
        return Error(float("inf"), None, "cannot read so")
    try:
        pairs = list(way())
    except Exception as error:  # the model's own code may raise anything
        return Error(float("inf"), None, f"raises {type(error).__name__}: {first_line(error)}")
    found = Error(0.0)
    for plain, other in pairs:
        size = _relative(plain.answers, other.answers)
        if size > found.size:
            off = [_relative(a, b) > tolerance for a, b in zip(plain.states, other.states)]
            block = off.index(True) if any(off) else None
            # The first piece that is off tells most: later ones read what it left in the cache.
            found = Error(size, found.block if found.size > tolerance else block)
    return found


def _relative(x: Tensor, y: Tensor) -> float:
    return float("inf") if x.shape != y.shape else largest(x.double(), y.double()) / scale(x)


def _ways(stack: Stack, inputs: Inputs, wanted: int) -> tuple[dict[str, Way], list[str]]:
    """The ways that apply to a model, and why others do not."""
    ways: dict[str, Way] = {}
    left_out = []
    text = _text(stack, inputs)
    if isinstance(text, str):
        left_out.append(f"no cached decoding: {text}")
    else:
        last = max(1, text.length - wanted)
        third = max(2, text.length // 3)
        if text.cache is None:
            left_out.append(f"no cached decoding: {type(stack.model).__name__} keeps no keys and values")
        else:
            ways["tokens"] = lambda: text.cached([0, *range(last, text.length)])
            ways["chunks"] = lambda: text.cached([0, 1, *range(third, text.length, third)])
        if takes(stack.model, text.mask):
            ways["padding"] = text.padded
    if batch_size(inputs) > 1:
        ways["rows"] = lambda: _rows(stack, inputs)
    else:
        left_out.append("one row only: nothing to compare it beside")
    return ways, left_out


def _rows(stack: Stack, inputs: Inputs) -> Iterator[tuple[Read, Read]]:
    """Each row of a batch by itself."""
    answers, states = _applied(stack, inputs)
    for b in range(batch_size(inputs)):
        part = rows(inputs, slice(b, b + 1))
        alone, alone_states = _applied(stack, part)
        seen = real_tokens(part, answers[b : b + 1], mask_name(inputs))
        at = real_tokens(part, states[0][b : b + 1], mask_name(inputs, stack.causal))
        yield (
            Read(answers[b : b + 1][seen], [s[b : b + 1][at] for s in states]),
            Read(alone[seen], [s[at] for s in alone_states]),
        )


def _applied(stack: Stack, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    states: list[Tensor] = []
    with watch_blocks(stack, _nothing, lambda k, output, state: states.append(stack.layout.tokens(state))):
        output = call(stack.model, inputs)
    return read_answer(output), states


def _nothing(*args: Any) -> None:
    """A block is called."""


# Text


class _Text:
    """Rows of token ids without padding, and how a model takes them."""

    def __init__(self, stack: Stack, ids: Tensor, name: str, beside: Mapping[str, Any]) -> None:
        self.stack, self.ids, self.name, self.beside = stack, ids, name, beside
        self.mask = name.replace("input_ids", "attention_mask")
        self.length = ids.shape[1]
        self.cache = self._cache_name()
        self._plain: Read | None = None

    def _cache_name(self) -> str | None:
        """The name under which the model takes and gives its cache."""
        names = [name for name in ("past_key_values", "cache_params") if takes(self.stack.model, name)]
        if not names or not takes(self.stack.model, "use_cache"):
            return None
        try:
            output = self._read(self.ids[:, :1], use_cache=True)[1]
        except Exception:  # a broken cache: to be said of the first way of reading
            return names[0]
        return next((name for name in names if getattr(output, name, None) is not None), None)

    def plain(self) -> Read:
        """One pass without a cache."""
        if self._plain is None:
            self._plain = self._read(self.ids)[0]
        return self._plain

    def _read(self, ids: Tensor, **more: Any) -> tuple[Read, Any]:
        states: list[Tensor] = []
        options = {"use_cache": False} if takes(self.stack.model, "use_cache") else {}
        with watch_blocks(self.stack, _nothing, lambda k, output, state: states.append(self._tokens(state))):
            output = self.stack.model(**self.beside, **{self.name: ids}, **(options | more))
        return Read(read_answer(output), states), output

    def _tokens(self, state: Tensor) -> Tensor:
        return self.stack.layout.tokens(state)

    def cached(self, starts: Sequence[int]) -> Iterator[tuple[Read, Read]]:
        """Pieces from these tokens on, each read with the cache that the pieces before it left."""
        assert self.cache is not None
        cache = None
        starts = sorted(set(starts))
        for a, b in zip(starts, [*starts[1:], self.length]):
            given: dict[str, Any] = {} if cache is None else {self.cache: cache}
            read, output = self._read(self.ids[:, a:b], use_cache=True, **given)
            cache = getattr(output, self.cache)
            yield _at(self.plain(), slice(a, b)), read

    def padded(self) -> Iterator[tuple[Read, Read]]:
        """The rows behind padding, with positions counted from the first real token where the model takes them."""
        config = getattr(self.stack.model, "config", None)
        pad = getattr(config, "pad_token_id", None)
        front = torch.full_like(self.ids[:, :1], pad if isinstance(pad, int) and pad >= 0 else 0).expand(-1, _PADDING)
        ids = torch.cat([front, self.ids], dim=1)
        mask = torch.ones_like(ids)
        mask[:, :_PADDING] = 0
        positions = self.name.replace("input_ids", "position_ids")
        more = {positions: (mask.cumsum(1) - 1).clamp_min(0)} if takes(self.stack.model, positions) else {}
        read, _ = self._read(ids, **{self.mask: mask}, **more)
        yield self.plain(), _at(read, slice(_PADDING, None))


def _at(read: Read, tokens: slice) -> Read:
    return Read(read.answers[:, tokens], [s[:, tokens] for s in read.states])


def _text(stack: Stack, inputs: Inputs) -> _Text | str:
    """The rows of a batch as text of one length, or why they are none."""
    if not isinstance(inputs, Mapping):
        return "the batch holds no tokens"
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    ids = inputs.get(name)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        return "the batch holds no tokens"
    mask = real_tokens(inputs, ids.unsqueeze(-1), mask_name(inputs))
    length = min(int(mask.sum(1).min()), _LONGEST)
    if length < 2:
        return "a row has fewer than 2 tokens"
    if not stack.causal:
        return "tokens see later ones, so that nothing can be kept"
    if stack.head != "token":
        return "the model gives no logits for its tokens"
    cut = torch.stack([row[real][:length] for row, real in zip(ids, mask)])
    own = {
        "labels",
        "token_type_ids",
        name,
        name.replace("input_ids", "attention_mask"),
        name.replace("input_ids", "position_ids"),
    }
    return _Text(stack, cut, name, {key: x for key, x in inputs.items() if key not in own})
