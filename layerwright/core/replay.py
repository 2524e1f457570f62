"""Replay: one batch's pass through a model, with every block and the rest of the model callable again from any state.

A block is called with exactly the arguments it got in the pass, except for the stream. The rest of the model after the
tower (final norm, head, soft caps, whatever it is) is called by running the whole model with the blocks stubbed: the
last one returns the given state. No part of a model needs to be recognised by name, and nothing is re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerwright.core.calls import Extra, alike, beside, exchanged, extras_in, leave_open, put_in, structure
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, call, rows
from layerwright.core.sharded import gathers
from layerwright.core.trace import first_tensor, same

if TYPE_CHECKING:
    from layerwright.core.stack import Stack

# Logits held at once: 32 MB in float32.
_LOGITS_AT_ONCE = 2**23


class Replay:
    """A pass over one batch: `states[0..L]` in the model's own layout, and the calls that made them."""

    def __init__(self, stack: Stack, inputs: Inputs, run: bool = True) -> None:
        """Run the model once and note every block application; or, with `run` off, be told of each by another pass."""
        self.stack = stack
        self.inputs = inputs
        self.states: MutableSequence[Tensor] = []
        self.output: Any = None
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.structures: list[Any] = []
        self._extras: dict[int, Extra] = {}
        if run:
            with watch_blocks(stack, self.enter, self.leave):
                self.output = call(stack.model, inputs)
            self.check()

    def check(self) -> None:
        """Hold the number of blocks that ran against the number traced.

        Raises:
            UserError: they differ.
        """
        if len(self._calls) != self.stack.depth:
            raise UserError(
                f"the tower ran {len(self._calls)} blocks on this batch and {self.stack.depth} when it was "
                "traced; a model whose depth depends on its input cannot be surveyed"
            )

    @classmethod
    def captured(cls, stack: Stack, inputs: Inputs, structures: list[Any]) -> Replay:
        """What every block application is called with, found without running any: no block needs its weights.

        Only `states[0]` is known. The rest of the model before the tower must be able to run.

        Args:
            stack: the model and its tower.
            inputs: a batch.
            structures: what each block application returns beside the stream, from a run that was watched.
        """
        replay = cls(stack, inputs, run=False)

        def stub(*args: Any, **kwargs: Any) -> Any:
            k, bottom = len(replay._calls) - 1, replay.states[0]
            if k == stack.depth - 1:
                raise _Captured
            # Every state is unlike the others, so that it is seen which of them an argument is.
            return put_in(exchanged(structures[k], torch.zeros_like), bottom.new_full((), k + 1.5).expand_as(bottom))

        with suppress(_Captured), watch_blocks(stack, replay.enter, replay.leave), _forwards(stack.blocks, stub):
            call(stack.model, inputs)
        replay.structures = list(structures)
        replay.check()
        del replay.states[1:]
        return replay

    def differs(self, other: Replay) -> int | None:
        """The first block application that is called with something else in another replay of the same inputs."""
        pairs = enumerate(zip(self._calls, other._calls, strict=True))
        return next((k for k, (mine, its) in pairs if not alike(mine, its)), None)

    @cached_property
    def handed_on(self) -> set[int]:
        """Block applications that later ones take more from than the stream."""
        return {extra.k for extra in extras_in(self._calls)}

    def first(self, k: int, state: Tensor) -> Tensor:
        """Run application `k` for the first time: what it hands on to later ones beside the stream is kept.

        Raises:
            UserError: it writes into the state that it is given.
        """
        version = state._version
        output = self.call(k, state)
        if state._version != version:
            raise writes_into_its_input(self.stack, k)
        if k in self.handed_on:
            self.structures[k] = structure(output)
        after = first_tensor(output)
        assert after is not None
        return after

    def hand_on(self, k: int, extras: Iterable[Tensor]) -> None:
        """Let application `k` have returned these tensors beside the stream."""
        new = iter(extras)
        self.structures[k] = exchanged(self.structures[k], lambda _: next(new))

    def call(self, k: int, state: Tensor) -> Any:
        """What application `k` of the tower returns on another state of the same shape."""
        args, kwargs = self._calls[k]
        args, kwargs = put_in(args, state, self.structures), put_in(kwargs, state, self.structures)
        return self.stack.blocks[self.stack.order[k]](*args, **kwargs)

    def block(self, k: int, state: Tensor) -> Tensor:
        """The state that application `k` of the tower makes of another state of the same shape."""
        output = first_tensor(self.call(k, state))
        assert output is not None
        return output

    def tail(self, state: Tensor, inputs: Inputs | None = None) -> Any:
        """The model's output had the tower ended in `state`; `inputs` where it has fewer sequences."""
        return tail(self.stack, self.structures, state, self.inputs if inputs is None else inputs)

    def logits(self, state: Tensor, sequences: Tensor) -> Tensor:
        """Logits `[B, T, V]` (or `[B, 1, K]`) of some sequences of the batch, had the tower ended in `state`."""
        state = state.index_select(self.stack.layout.batch, sequences)
        logits = read_logits(self.tail(state, rows(self.inputs, sequences)), state)
        assert logits is not None
        return in_float(logits.unsqueeze(1) if logits.ndim == 2 else logits)

    def few_sequences(self) -> tuple[Tensor, ...]:
        """The sequences in portions whose logits, the largest tensors here, can be held: their numbers in the batch."""
        final = self.states[-1]
        numbers = torch.arange(final.shape[self.stack.layout.batch], device=final.device)
        return numbers.split(max(1, _LOGITS_AT_ONCE // self.logits(final, numbers[:1]).numel()))

    def enter(self, k: int, args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor) -> None:
        """Block application `k` is called."""
        if k == 0:
            self.states.append(state)
        self._calls.append((leave_open(args, state, self._extras), leave_open(kwargs, state, self._extras)))

    def leave(self, k: int, output: Any, state: Tensor) -> None:
        """It has returned."""
        self.states.append(state)
        self.structures.append(structure(output))
        self._extras.update({id(x): Extra(k, n) for n, x in enumerate(beside(self.structures[-1]))})


def tail(stack: Stack, structures: list[Any], state: Tensor, inputs: Inputs) -> Any:
    """Run the model with its tower stubbed, so that the tower ends in `state`.

    Args:
        stack: the model and its tower.
        structures: what each block application returned, without the stream (`structure`).
        state: the last state of the stream, for as many sequences and tokens as `inputs` has.
        inputs: a batch.
    """
    ran = 0

    def stub(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        ran += 1
        # Blocks before the last only have to hand on something of the right kind: nobody reads their state.
        return put_in(structures[ran - 1], state)

    with _forwards(stack.blocks, stub):
        return call(stack.model, inputs)


Enter = Callable[[int, tuple[Any, ...], dict[str, Any], Tensor], None]
Leave = Callable[[int, Any, Tensor], None]


@contextmanager
def watch_blocks(stack: Stack, enter: Enter, leave: Leave) -> Iterator[None]:
    """Call `enter(k, args, kwargs, state)` and `leave(k, output, state)` around every application of a block."""
    order, blocks = stack.order, stack.blocks
    entered = left = 0
    last: Tensor | None = None
    version = 0

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entered, version, last
        if entered == len(order) or module is not blocks[order[entered]]:
            return
        last = _stream(args, kwargs, last, stack)
        version = last._version
        entered += 1
        enter(entered - 1, args, kwargs, last)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal left, last
        if left == len(order) or left == entered or module is not blocks[order[left]]:
            return
        assert last is not None
        if last._version != version:
            raise writes_into_its_input(stack, left)
        last = first_tensor(output)
        assert last is not None
        left += 1
        leave(left - 1, output, last)

    handles = []
    try:
        for block in blocks:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _forwards(modules: list[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Give every module another `forward`, and take it back."""
    own = {m: m.__dict__.get("forward") for m in modules}
    # Past the hooks of FSDP2: they would gather weights that nobody needs, in a backward those of all blocks at once.
    past = [m for m in modules if gathers(m)]
    try:
        for m in modules:
            m.forward = forward
        for m in past:
            m._compiled_call_impl = forward
        yield
    finally:
        for m in past:
            m._compiled_call_impl = None
        for m, before in own.items():
            if before is None:
                m.__dict__.pop("forward", None)
            else:
                m.forward = before


def writes_into_its_input(stack: Stack, k: int) -> UserError:
    """What to say of a block that destroys the state it was given."""
    return UserError(
        f"block {k} ({stack.tower.block_paths[stack.order[k]]}) writes into its input, so that the stream before it is "
        "lost; make its residual addition out of place (x = x + f(x))"
    )


class _Captured(Exception):
    """Raised in place of the last block: everything there is to know is known."""


def _stream(args: tuple[Any, ...], kwargs: dict[str, Any], last: Tensor | None, stack: Stack) -> Tensor:
    """The argument that is the stream: the last block's output, or what is as wide for the first block."""
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    layout = stack.layout
    fits = [x for x in given if x.ndim == layout.ndim and x.shape[layout.width] == stack.width]
    found = [x for x in fits if last is None or x is last or same(x, last)]
    if not found:
        raise UserError(f"a block of {stack.tower.path} was not called with the state that the block before it left")
    return found[0]


def read_logits(output: Any, state: Tensor) -> Tensor | None:
    """The logits in a model's output, or None where it has none (a headless model returns its features)."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) and first.shape != state.shape else None


def in_float(x: Tensor) -> Tensor:
    """Float32 or wider."""
    return x if x.dtype == torch.float64 else x.float()
