"""A case for the ladder: two models, the batch they are compared on, and what is known of the edit between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, on_device
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.replay import Replay
from layerwright.core.rungs.answers import Preserved, tolerance
from layerwright.core.rungs.losses import Losses, losses
from layerwright.core.stack import Stack


@dataclass
class Case:
    """What the ladder climbs on.

    Attributes:
        before: the base.
        after: the new model.
        inputs: a small batch, as both models take it; rungs 2 to 5 and 7 run on it.
        blocks: path of the tower of blocks, where the base has several.
        order: the block of the base that each block of the new tower takes after; None where nobody knows.
        copies: whether the plan only chose blocks, so that every weight must be its source's, bit for bit.
        provenance: for each tensor of the new model, the tensors of the base that it is made from.
        expected: what the new model must answer: logits, or a function from the batch to them.
        steps: what each step was measured to preserve (`preserved`).
        requirements: the `verify:` section of the plan.
        folder: where the new model was saved.
        save: saves the new model into an empty folder; asked where there is no `folder`.
        imports: modules that a fresh process must import before it can load the result; none for a plain one.
        documents: batches of text (or labelled samples) for quality; each row is a document.
        prefix: leading tokens of each document that do not count.
        tokenizer: of both models; only for `tasks`.
        tasks: tasks of lm-eval.
        control: makes the model of a random plan of the same budget from a seed.
        seed: seeds everything random.
    """

    before: nn.Module
    after: nn.Module
    inputs: Inputs
    blocks: str | None = None
    order: Sequence[int] | None = None
    copies: bool = False
    provenance: Mapping[str, Sequence[str]] | None = None
    expected: Tensor | Callable[[Inputs], Tensor] | None = None
    steps: Sequence[Preserved] = ()
    requirements: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    save: Callable[[Path], Any] | None = None
    imports: Sequence[str] = ()
    documents: Sequence[Inputs] = ()
    prefix: int = 0
    tokenizer: Any = None
    tasks: Sequence[str] = ()
    control: Callable[[int], nn.Module] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Look through wrappers that run a model unchanged."""
        self.before, self.after = unwrap(self.before), unwrap(self.after)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Both models in evaluation, without gradients, and as they were when it ends."""
        with undisturbed(self.before), undisturbed(self.after), torch.no_grad():
            yield

    @cached_property
    def base(self) -> Stack:
        """The base and its tower."""
        return Stack.find(self.before, self.inputs, self.blocks)

    @cached_property
    def new(self) -> Stack:
        """The new model and its tower, at the place where the base has its own."""
        stem = self.base.tower.path.partition("[")[0]
        try:
            return Stack.find(self.after, self.inputs, stem)
        except UserError as error:
            if (single := self._single()) is not None:
                return single
            if "{" not in stem:  # a family of attributes `layer{1..4}` goes by another name when it is shorter
                raise error
            return Stack.find(self.after, self.inputs)

    def _single(self) -> Stack | None:
        """A tower of one block, which tracing does not see as a tower: it chains with nothing."""
        parent = self.base.tower.block_paths[0].rpartition(".")[0]
        try:
            names = [name for name, _ in self.after.get_submodule(parent).named_children()]
        except AttributeError:
            return None
        if len(names) != 1:
            return None
        path = f"{parent}.{names[0]}" if parent else names[0]
        tower = replace(self.base.tower, block_paths=(path,), order=(0,))
        return replace(self.base, model=self.after, tower=tower, towers=(tower,), parts=self.base.parts[:1])

    @cached_property
    def base_inputs(self) -> Inputs:
        """The batch where the base is."""
        return on_device(self.inputs, self.before)

    @cached_property
    def new_inputs(self) -> Inputs:
        """The batch where the new model is."""
        return on_device(self.inputs, self.after)

    @cached_property
    def base_pass(self) -> Replay:
        """The base's pass over the batch."""
        return Replay(self.base, self.base_inputs)

    @cached_property
    def new_pass(self) -> Replay:
        """The new model's."""
        return Replay(self.new, self.new_inputs)

    @cached_property
    def tolerance(self) -> float:
        """How far two computations of the same numbers may be apart, over the largest of them."""
        return max(tolerance(self.before), tolerance(self.after))

    @cached_property
    def base_losses(self) -> Losses:
        """The base's loss on each document."""
        return losses(self.base, self.documents, self.prefix)

    @cached_property
    def new_losses(self) -> Losses:
        """The new model's."""
        return losses(self.new, self.documents, self.prefix)

    def place(self, j: int) -> str:
        """A block of the new tower in words, with its path."""
        return f"block {j} ({self.new.tower.block_paths[self.new.order[j]]})"
