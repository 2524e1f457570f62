"""Check what came of a plan: the case for the ladder, from what is known of the edit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layerwright.core.data import load_data
from layerwright.core.edit import Edit, apply
from layerwright.core.errors import UserError
from layerwright.core.export import save_plain
from layerwright.core.inputs import Inputs, batch_size, rows, short
from layerwright.core.plan import Plan
from layerwright.core.probe import probe_inputs
from layerwright.core.progress import Progress
from layerwright.core.rungs.answers import read_answer
from layerwright.core.rungs.ladder import Ladder
from layerwright.core.side_by_side import can_stand_side_by_side, side_by_side
from layerwright.core.stack import Stack
from layerwright.core.steps import preserved_by
from layerwright.core.tied import imports_of
from layerwright.core.verify import Case, Preserved, preserved, verify

# Rows and tokens of the batch on which two models are compared.
_ROWS, _TOKENS = 4, 64
# Text for a batch where none was given.
_FEW_TOKENS = 1024


@dataclass(frozen=True)
class Wish:
    """What a user asks for.

    Attributes:
        plan: what to do.
        data: to measure the loss on, as in a survey; None leaves quality out.
        out: where to save the result.
        until: the last rung of the ladder to climb; `none` for no check at all.
        blocks: path of the tower, where the model has several.
        tokenizer: for text with a live model.
        max_tokens: how much of the data to use.
        length: tokens in a document.
        seed: seeds everything random.
        export: `plain`, or a weight that blocks share once: `tied` for our own class, `remote` with code beside it.
        progress: called with a stage, the work done and the work there is.
        say: called with a line that a user should read.
    """

    plan: Plan
    data: Any = None
    out: Path | None = None
    until: str = "reload"
    blocks: str | None = None
    tokenizer: Any = None
    max_tokens: int | None = None
    length: int | None = None
    seed: int = 0
    export: str = "plain"
    progress: Progress = lambda stage, done, total: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Material:
    """Data of a reshaping.

    Attributes:
        inputs: a small batch, on which models are compared.
        fit: batches for steps that fit something.
        documents: batches on which the loss is measured; never what was fitted on.
        prefix: leading tokens of each document that do not count.
    """

    inputs: Inputs
    fit: Sequence[Inputs] = ()
    documents: Sequence[Inputs] = ()
    prefix: int = 0

    @classmethod
    def of(cls, wish: Wish, model: nn.Module, tokenizer: Any) -> Material:
        """What the user gave, or a little text where the model reads text, or random inputs."""
        if wish.data is None and tokenizer is None:
            return cls(probe_inputs(model))
        tokens = _FEW_TOKENS if wish.data is None else wish.max_tokens
        given = load_data(wish.data, model, tokenizer, length=wish.length, max_tokens=tokens)
        few = short(rows(given.batches[0], slice(0, _ROWS)), _TOKENS)
        fits = any("heal" in step or _learned(step) for step in wish.plan.steps)
        fit = [rows(batch, slice(0, None, 2)) for batch in given.batches] if fits else []
        measured = [rows(batch, slice(1, None, 2)) for batch in given.batches] if fits else given.batches
        documents = [batch for batch in measured if batch_size(batch)] if wish.data is not None else []
        return cls(few, fit, documents, given.prefix)


def _learned(step: Mapping[str, Any]) -> bool:
    """Whether a step holds what a planner learned on every other document."""
    options = step.get("grow")
    return isinstance(options, dict) and options.get("by") == "learn"


def climb(wish: Wish, edit: Edit, stack: Stack, new: nn.Module, given: Material, folder: Path | None) -> Ladder | None:
    """Check what came of a plan, as far up the ladder as was asked for; None where nothing was.

    Args:
        wish: what the user asked for.
        edit: what was done.
        stack: the base and its tower.
        new: the new model.
        given: data.
        folder: where the new model was saved, if it was.
    """
    if wish.until == "none":
        return None
    plain = hasattr(new, "save_pretrained")
    case = Case(
        stack.model,
        new,
        given.inputs,
        blocks=wish.blocks,
        order=edit.order,
        copies=_only_order(edit.plan, stack.depth),
        provenance=edit.provenance if plain else None,
        expected=_expected(stack, edit.plan),
        steps=_measured(stack, edit.plan, given, wish.blocks),
        requirements=edit.plan.verify,
        folder=folder,
        save=None if folder is not None or not plain else lambda place: save_plain(new, place),
        imports=imports_of(new),
        documents=[batch for batch in given.documents if _has_loss(stack, batch)],
        prefix=given.prefix,
        control=_control(stack, edit, given.inputs),
        seed=wish.seed,
    )
    return verify(case, until=wish.until, progress=wish.progress)


def _only_order(plan: Plan, depth: int) -> bool:
    try:
        plan.order(depth)
    except UserError:
        return False
    return True


def _has_loss(stack: Stack, batch: Inputs) -> bool:
    """Whether there is something to predict: labels, or the next token of a causal model."""
    return (isinstance(batch, Mapping) and "labels" in batch) or (stack.causal and stack.head == "token")


def _expected(stack: Stack, plan: Plan) -> Callable[[Inputs], Tensor] | None:
    """What joined blocks must answer: that of the base's blocks side by side."""
    *before, last = plan.steps or ({},)
    if "parallel" not in last or not _only_order(Plan(tuple(before)), stack.depth) or not can_stand_side_by_side(stack):
        return None
    order = Plan(tuple(before)).order(stack.depth)
    given = last["parallel"]
    size = given.get("groups", 2) if isinstance(given, dict) else given
    return lambda inputs: read_answer(side_by_side(stack, inputs, order, size))


def _measured(stack: Stack, plan: Plan, given: Material, blocks: str | None) -> Sequence[Preserved]:
    """What each step did to the function, where a step changes weights: the plan is done step by step."""
    if _only_order(plan, stack.depth) and "exact" not in plan.verify:
        return ()
    found, before, at = [], stack.model, stack
    for step in plan.steps:
        ((name, _),) = step.items()
        after, _ = apply(at, Plan((step,)), given.inputs, given.fit)
        found.append(preserved(before, after, given.inputs, step=name, declared=preserved_by(step)))
        if len(found) < len(plan.steps):
            before, at = after, Stack.find(after, given.inputs, blocks)
    return found


def _control(stack: Stack, edit: Edit, inputs: Inputs) -> Callable[[int], nn.Module] | None:
    """Models of as many blocks, chosen at random; for plans that leave blocks out."""
    order = list(edit.order)
    if not _only_order(edit.plan, stack.depth) or order != sorted(set(order)) or len(order) == stack.depth:
        return None

    def make(seed: int) -> nn.Module:
        kept = sorted(random.Random(seed).sample(range(stack.depth), len(order)))
        return apply(stack, Plan(({"keep": kept},)), inputs)[0]

    return make
