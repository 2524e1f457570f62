"""Apply a plan: the only code that changes a model, and never the caller's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.base import LiveBase, StoredBase
from layerwright.core.draft import Draft
from layerwright.core.errors import NeedsModel, NotByBlocks, UserError
from layerwright.core.frame import config_of, fill, frame_of_config, frame_of_modules, put_back, settle
from layerwright.core.inputs import Inputs
from layerwright.core.load import check_keys, first_line, quietly
from layerwright.core.plan import Plan
from layerwright.core.recipe import Recipe
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.steps import apply_step
from layerwright.core.tensor_writer import Item, Progress, write_tensors
from layerwright.core.tied import plain, ties_between, with_ties


@dataclass(frozen=True)
class Edit:
    """What a plan came to.

    Attributes:
        plan: that was applied.
        order: the block of the base that each block takes after.
        provenance: for each tensor, the tensors of the base that it is made from.
        notes: what a reader of the result should know.
        sha256: fingerprint of the base.
    """

    plan: Plan
    order: tuple[int, ...]
    provenance: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    sha256: str


def apply(
    stack: Stack, plan: Plan, inputs: Inputs, batches: Sequence[Inputs] = (), stored: str = ""
) -> tuple[nn.Module, Edit]:
    """The model that a plan makes of another, in memory.

    Args:
        stack: the base and its tower.
        plan: what to do.
        inputs: a batch, on a small piece of which the parts of blocks are found.
        batches: data, for steps that fit something.
        stored: fingerprint of the files that the base was loaded from: a plan for them is for it as well.

    Returns:
        A new model, the base being as it was, and where it comes from.

    Raises:
        UserError: the plan is for another base or cannot be done on this one, or no configuration describes the result.
    """
    base = LiveBase(stack, inputs, batches)
    sha256 = stored if stored and plan.sha256 in ("", stored) else base.fingerprint()
    check_base(plan, sha256)
    draft = done(plan, base.draft())
    order = tuple(block.source for block in draft.blocks)
    notes: tuple[str, ...] = ()
    if base.config is not None:
        entries, notes = base.config.of(order, draft.settings)
        frame = frame_of_config(base.stack, entries, order)
    else:
        frame = frame_of_modules(base.stack, order)
    loose = _loose(base, frame.source, frame.model)
    recipes = named(draft, frame.paths, {name: draft.outside.get(name, _as_is)(r) for name, r in loose.items()})
    if draft.outside:
        settle(frame.model, base.model, frame.source)
    with torch.no_grad():
        weights = {name: _made(recipe, base.state) for name, recipe in recipes.items()}
    fill(frame, base.model, weights, _tied(base.stack, draft, frame.paths))
    if (generation := getattr(base.model, "generation_config", None)) is not None:
        frame.model.generation_config = copy.deepcopy(generation)
    model = put_back(stack.model, base.host, frame.model)
    return model.train(stack.model.training), Edit(plan, order, provenance(recipes), draft.notes + notes, sha256)


def apply_stored(
    skeleton: Skeleton,
    plan: Plan,
    folder: Path,
    *,
    blocks: str | None = None,
    export: str = "plain",
    progress: Progress = lambda stage, done, total: None,
) -> Edit:
    """Write the weights and the configuration of what a plan makes of a checkpoint, without loading it.

    Tensors that only move are copied byte for byte. One that changes is made when its turn comes, from the tensors that
    it needs.

    Args:
        skeleton: the base.
        plan: what to do.
        folder: an empty folder.
        blocks: path of the tower, where the model has several.
        export: as in a wish; any but `plain` writes a weight that blocks share once (`core/tied.py`).
        progress: called with the MiB written.

    Raises:
        UserError: the plan is for another base or cannot be done on this one, no configuration describes the result, or
            its weights would not fit it.
        OSError: the disk is full, or cannot be written.
    """
    if plain(skeleton.model) is not skeleton.model:
        raise NotByBlocks(f"{skeleton.checkpoint.folder} is for blocks that share weights; reshape the model in memory")
    base = StoredBase(skeleton, blocks)
    sha256 = base.fingerprint()
    check_base(plan, sha256)
    try:
        draft = done(plan, base.draft())
        order = tuple(block.source for block in draft.blocks)
        entries, notes = base.config.of(order, draft.settings)
    finally:
        base.close()
    loose = {n: draft.outside.get(base.places.get(n, n), _as_is)(r) for n, r in base.loose().items()}
    recipes = named(draft, [f"{base.stem}{j}" for j in range(draft.depth)], loose)
    config, kind = config_of(skeleton.model.config, entries), type(skeleton.model)
    if export != "plain":
        kind, config, recipes = _once(base, draft, config, recipes, code=export == "remote")
    _check_fits(kind, config, recipes)
    with quietly():
        config.save_pretrained(folder)
    write_tensors(folder, _items(skeleton, recipes), progress=progress)
    return Edit(plan, order, provenance(recipes), draft.notes + notes, sha256)


def check_base(plan: Plan, sha256: str) -> None:
    """Refuse a model that the plan was not made for."""
    if plan.sha256 and plan.sha256 != sha256:
        raise UserError(
            f"the plan is for the model {plan.base or 'with the fingerprint'} {plan.sha256[:12]}, and this one is "
            f"{sha256[:12]}; give the model it was made for, or take sha256 out of the plan"
        )


def done(plan: Plan, draft: Draft) -> Draft:
    """The draft after all steps of a plan."""
    for number, step in enumerate(plan.steps):
        try:
            draft = apply_step(draft, step)
        except NeedsModel:
            raise
        except UserError as error:
            raise UserError(f"{error} (step {number + 1} of the plan)") from None
    return draft


def named(draft: Draft, paths: Sequence[str], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The recipe of every tensor of the new model, by its name there.

    Raises:
        UserError: blocks that share one place in the model are to differ.
    """
    recipes = dict(others)
    for path, block in zip(paths, draft.blocks):
        for name, recipe in block.weights.items():
            full = f"{path}.{name}"
            before = recipes.setdefault(full, recipe)
            if before is not recipe and not (isinstance(before, Recipe) and before.same_copy(recipe)):
                raise UserError(f"{path} is one block that runs several times, and cannot differ from run to run")
    return recipes


def provenance(recipes: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each tensor the tensors of the base that it is made from."""
    return {name: tuple(sorted(r.sources())) if isinstance(r, Recipe) else () for name, r in recipes.items()}


def _as_is(weight: Tensor) -> Tensor:
    return weight


# In memory


def _loose(base: LiveBase, source: Any, model: nn.Module) -> dict[str, Tensor]:
    """Recipes of all tensors outside the blocks, by their names in the new model."""
    inside = tuple(f"{path}." for path in base.paths)
    found: dict[str, Tensor] = {}
    for name in model.state_dict():
        path, _, own = name.rpartition(".")
        origin = source(path)
        old = f"{origin}.{own}" if origin else own
        if not old.startswith(inside) and old in base.state:
            found[name] = Recipe.of(old, tuple(base.state[old].shape), base.state[old].dtype)
    return found


def _made(recipe: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The numbers of a recipe, in memory of their own."""
    tensor = recipe.make(state) if isinstance(recipe, Recipe) else recipe
    owners = {t.untyped_storage().data_ptr() for t in state.values()}
    return tensor.clone() if tensor.untyped_storage().data_ptr() in owners else tensor.contiguous()


def _tied(stack: Stack, draft: Draft, paths: Sequence[str]) -> dict[str, Any]:
    """What is one parameter: as in the base outside the blocks, as the plan says inside."""
    first: dict[int, str] = {}
    inside = tuple(f"{path}." for path in stack.tower.block_paths)
    tied: dict[str, Any] = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in stack.model.named_parameters(remove_duplicate=False)
        if not name.startswith(inside)
    }
    for path, block in zip(paths, draft.blocks):
        tied |= {f"{path}.{name}": number for name, number in block.tied.items()}
    return tied


# On disk


def _once(
    base: StoredBase, draft: Draft, config: Any, recipes: Mapping[str, Tensor], *, code: bool
) -> tuple[Any, Any, Any]:
    """Class, configuration and recipes of a model whose shared weights are in the file once."""
    if not base.as_is:
        raise NeedsModel("an export of shared weights")
    module = base.model.get_submodule
    own = [dict(module(f"{base.container}.{b.source}").named_parameters()) for b in draft.blocks]
    numbers = [{n: k for n, k in b.tied.items() if n in names} for b, names in zip(draft.blocks, own)]
    ties = ties_between(numbers, [f"{base.container}.{j}" for j in range(draft.depth)])
    kind, config = with_ties(type(base.model), config, ties, code=code)
    left_out = ties_between(numbers, [f"{base.stem}{j}" for j in range(draft.depth)])
    return kind, config, {name: recipe for name, recipe in recipes.items() if name not in left_out}


def _check_fits(kind: Any, config: Any, recipes: Mapping[str, Tensor]) -> None:
    """Let transformers put the new weights, without their numbers, into the model of the new configuration."""
    stored = {name: Recipe.of(name, tuple(r.shape), r.dtype) for name, r in recipes.items()}
    try:
        with quietly():
            model, loaded = kind.from_pretrained(
                None, config=copy.deepcopy(config), state_dict=stored, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"transformers cannot load what the plan makes: {first_line(error)}") from None
    check_keys(Path("the new model"), model, loaded)


def _items(skeleton: Skeleton, recipes: Mapping[str, Tensor]) -> list[Item]:
    """What to write; copies in the order of the files they come from, what is made beside its neighbours."""
    checkpoint = skeleton.checkpoint
    verified = checkpoint.checksums is not None  # then what is copied is read through, and held against its digest

    def item(name: str, recipe: Tensor) -> Item:
        copied = isinstance(recipe, Recipe) and recipe.copy and not verified

        def make() -> Tensor:
            return recipe.make(checkpoint.read(recipe.sources())) if isinstance(recipe, Recipe) else recipe

        source = checkpoint.entries[next(iter(recipe.sources()))] if copied and isinstance(recipe, Recipe) else None
        return Item(name, recipe.dtype, tuple(recipe.shape), source, None if copied else make)

    def place(name: str) -> tuple[str, int]:
        recipe = recipes[name]
        first = min(recipe.sources(), default="") if isinstance(recipe, Recipe) else ""
        entry = checkpoint.entries.get(first)
        return ("", 0) if entry is None else (str(entry.file), entry.start)

    return [item(name, recipes[name]) for name in sorted(recipes, key=place)]
