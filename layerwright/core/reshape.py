"""Reshape a model: apply a plan, climb the ladder, and publish the result if it holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layerwright import __version__
from layerwright.core.beside_weights import copy_others, write_card, write_record
from layerwright.core.data import load_data
from layerwright.core.edit import Edit, apply, apply_stored
from layerwright.core.errors import NeedsModel, NotByBlocks, UserError
from layerwright.core.inputs import Inputs, batch_size, rows, short
from layerwright.core.load import load_model, locate, quietly, read_json
from layerwright.core.memory import available_memory
from layerwright.core.plan import Plan
from layerwright.core.probe import probe_inputs
from layerwright.core.progress import Progress
from layerwright.core.recipe import Recipe
from layerwright.core.rungs.answers import read_answer
from layerwright.core.rungs.ladder import Ladder
from layerwright.core.side_by_side import can_stand_side_by_side, side_by_side
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.staging import check_free, staged
from layerwright.core.steps import STEPS
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
    progress: Progress = lambda stage, done, total: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Reshaped:
    """What came of a plan.

    Attributes:
        edit: plan, order of blocks, provenance of every tensor, notes.
        ladder: what was checked; None where nothing was.
        base: what the plan was applied to.
        folder: where the result is; None where it was not saved.
    """

    edit: Edit
    ladder: Ladder | None
    base: str
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every rung that was climbed held."""
        return self.ladder is None or self.ladder.ok

    def to_dict(self) -> dict[str, Any]:
        """The document that `reshape.json` holds."""
        return {
            "schema": 1,
            "layerwright": __version__,
            "base": {"model": self.base, "sha256": self.edit.sha256},
            "plan": self.edit.plan.to_dict(),
            "order": list(self.edit.order),
            "notes": list(self.edit.notes),
            "ladder": None if self.ladder is None else self.ladder.to_dict(),
            "provenance": {name: list(sources) for name, sources in self.edit.provenance.items()},
        }


def reshape_live(model: nn.Module, wish: Wish, base: str) -> tuple[nn.Module, Reshaped]:
    """The model that a plan makes of a live one, checked, and saved where that was asked for.

    Raises:
        UserError: the plan cannot be done, or the result cannot be saved.
    """
    if wish.out is not None:
        check_free(wish.out)
    given = Material.of(wish, model, wish.tokenizer)
    stack = Stack.find(model, given.inputs, wish.blocks)
    new, edit = apply(stack, wish.plan, given.inputs, given.fit)
    if wish.out is None:
        ladder = _climb(wish, edit, stack, new, given, None)
        return new, Reshaped(edit, ladder, base)
    with staged(wish.out) as stage:
        save(new, stage.folder, wish.tokenizer)
        ladder = _climb(wish, edit, stack, new, given, stage.folder)
        result = Reshaped(edit, ladder, base)
        return new, replace(result, folder=_released(stage, result))


def reshape_stored(source: str | Path, wish: Wish, *, trust_remote_code: bool = False) -> Reshaped:
    """Write what a plan makes of a checkpoint, without loading it where its steps allow, then load it to check it.

    Raises:
        UserError: the model or the plan cannot be used, or the folder cannot be written.
    """
    assert wish.out is not None
    folder, _ = locate(str(source), trust_remote_code)
    if wish.out.absolute().resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"got --out {wish.out}, which holds the base itself; choose another folder")
    if read_json(folder / "config.json").get("quantization_config"):
        raise UserError(f"{folder} is quantized, and scales belong to its weights; reshape the model before quantizing")
    with staged(wish.out) as stage:
        try:
            skeleton, _, _ = Skeleton.load(source, trust_remote_code=trust_remote_code)
            edit = apply_stored(skeleton, wish.plan, stage.folder, blocks=wish.blocks, progress=wish.progress)
        except (NeedsModel, NotByBlocks) as error:
            wish.say(
                f"{error}: loading it" if isinstance(error, NeedsModel) else "loading the model: its files do not do"
            )
            edit = _through_memory(source, wish, stage.folder, trust_remote_code)
        copy_others(folder, stage.folder)
        ladder = _check_saved(source, wish, edit, stage.folder)
        result = Reshaped(edit, ladder, str(source))
        return replace(result, folder=_released(stage, result))


def save(model: nn.Module, folder: Path, tokenizer: Any = None) -> None:
    """Save a model so that plain transformers loads it: a weight that several blocks share is written for each.

    Raises:
        UserError: it has no `save_pretrained`, or refuses.
    """
    write: Any = getattr(model, "save_pretrained", None)
    if write is None:
        raise UserError(f"{type(model).__name__} has no save_pretrained; take the model and save it in your own way")
    with quietly():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        write(folder, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _released(stage: Any, result: Reshaped) -> Path:
    """The folder with its record, in its place, or beside it where the ladder failed."""
    document = result.to_dict()
    write_record(stage.folder, document)
    write_card(stage.folder, document, result.ladder.lines() if result.ladder else [])
    return stage.publish() if result.ok else stage.mark()


def _through_memory(source: str | Path, wish: Wish, folder: Path, trust_remote_code: bool) -> Edit:
    model, tokenizer, _ = load_model(source, trust_remote_code=trust_remote_code)
    given = Material.of(wish, model, tokenizer)
    new, edit = apply(Stack.find(model, given.inputs, wish.blocks), wish.plan, given.inputs, given.fit)
    save(new, folder)
    return edit


def _check_saved(source: str | Path, wish: Wish, edit: Edit, folder: Path) -> Ladder | None:
    if wish.until == "none":
        return None
    places = (locate(str(source), False)[0], folder)
    needed = sum(file.stat().st_size for place in places for file in place.glob("*.safetensors"))
    if 1.2 * needed > available_memory():
        wish.say(f"not checked: both models take {needed >> 20} MB of memory; run `lw verify` on a larger machine")
        return None
    base, tokenizer, _ = load_model(source)
    new, _, _ = load_model(folder)
    given = Material.of(wish, base, tokenizer)
    edit = replace(edit, provenance=_as_loaded(new, source, folder, edit.provenance))
    return _climb(wish, edit, Stack.find(base, given.inputs, wish.blocks), new, given, folder)


def _as_loaded(
    new: nn.Module, base: str | Path, folder: Path, provenance: Mapping[str, tuple[str, ...]]
) -> Mapping[str, tuple[str, ...]]:
    """Where the model's tensors come from, also where files hold them joined, split, or under other names."""
    if new.state_dict().keys() <= provenance.keys():
        return provenance
    before, after = (Skeleton.load(place)[0].recipes for place in (base, folder))
    holders: dict[str, list[str]] = {}
    for name, recipe in before.items():
        for part in recipe.sources():
            holders.setdefault(part, []).append(name)

    def origins(recipe: Recipe) -> tuple[str, ...]:
        stored = {source for part in recipe.sources() for source in provenance.get(part, ())}
        return tuple(sorted({name for source in stored for name in holders.get(source, ())}))

    return {name: origins(recipe) for name, recipe in after.items()}


# The ladder


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
        fits = any("heal" in step for step in wish.plan.steps)
        fit = [rows(batch, slice(0, None, 2)) for batch in given.batches] if fits else []
        measured = [rows(batch, slice(1, None, 2)) for batch in given.batches] if fits else given.batches
        documents = [batch for batch in measured if batch_size(batch)] if wish.data is not None else []
        return cls(few, fit, documents, given.prefix)


def _climb(wish: Wish, edit: Edit, stack: Stack, new: nn.Module, given: Material, folder: Path | None) -> Ladder | None:
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
        save=None if folder is not None or not plain else lambda place: save(new, place),
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
        found.append(preserved(before, after, given.inputs, step=name, declared=STEPS[name].preserving))
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
