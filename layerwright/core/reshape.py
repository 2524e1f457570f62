"""Reshape a model: apply a plan, climb the ladder, and publish the result if it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from layerwright import __version__
from layerwright.core.base import stored_fingerprint
from layerwright.core.beside_weights import copy_others, write_card, write_record
from layerwright.core.climb import Material, Wish, climb
from layerwright.core.edit import Edit, apply, apply_stored
from layerwright.core.errors import NeedsModel, NotByBlocks, UserError
from layerwright.core.export import save_plain
from layerwright.core.load import load_model, locate, read_json
from layerwright.core.memory import available_memory
from layerwright.core.recipe import Recipe
from layerwright.core.rungs.ladder import Ladder
from layerwright.core.shards import Checkpoint
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.staging import Stage, check_free, staged
from layerwright.core.tied import WARNING, exported


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


def reshape_live(model: nn.Module, wish: Wish, base: str, stored: str = "") -> tuple[nn.Module, Reshaped]:
    """The model that a plan makes of a live one, checked, and saved where that was asked for.

    `stored` is the fingerprint of the files that it was loaded from, where it was.

    Raises:
        UserError: the plan cannot be done, or the result cannot be saved.
    """
    if wish.out is not None:
        check_free(wish.out)
    given = Material.of(wish, model, wish.tokenizer)
    stack = Stack.find(model, given.inputs, wish.blocks)
    new, edit = apply(stack, wish.plan, given.inputs, given.fit, stored)
    new = exported(new, wish.export)
    if wish.out is None:
        ladder = climb(wish, edit, stack, new, given, None)
        return new, Reshaped(edit, ladder, base)
    with staged(wish.out) as stage:
        save_plain(new, stage.folder, wish.tokenizer)
        ladder = climb(wish, edit, stack, new, given, stage.folder)
        result = Reshaped(edit, ladder, base)
        return new, replace(result, folder=_released(wish, stage, result))


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
            edit = apply_stored(
                skeleton, wish.plan, stage.folder, blocks=wish.blocks, export=wish.export, progress=wish.progress
            )
        except (NeedsModel, NotByBlocks) as error:
            wish.say(
                f"{error}: loading it" if isinstance(error, NeedsModel) else "loading the model: its files do not do"
            )
            edit = _through_memory(source, wish, stage.folder, trust_remote_code)
        copy_others(folder, stage.folder)
        ladder = _check_saved(source, wish, edit, stage.folder)
        result = Reshaped(edit, ladder, str(source))
        return replace(result, folder=_released(wish, stage, result))


def _released(wish: Wish, stage: Stage, result: Reshaped) -> Path:
    """The folder with its record, in its place, or beside it where the ladder failed."""
    document = result.to_dict()
    write_record(stage.folder, document)
    write_card(stage.folder, document, result.ladder.lines() if result.ladder else [])
    folder = stage.publish() if result.ok else stage.mark()
    if wish.export == "remote":
        wish.say(WARNING)
    return folder


def _through_memory(source: str | Path, wish: Wish, folder: Path, trust_remote_code: bool) -> Edit:
    model, tokenizer, _ = load_model(source, trust_remote_code=trust_remote_code)
    given = Material.of(wish, model, tokenizer)
    stored = stored_fingerprint(Checkpoint.open(locate(str(source), trust_remote_code)[0]))
    new, edit = apply(Stack.find(model, given.inputs, wish.blocks), wish.plan, given.inputs, given.fit, stored)
    save_plain(exported(new, wish.export), folder)
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
    return climb(wish, edit, Stack.find(base, given.inputs, wish.blocks), new, given, folder)


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
