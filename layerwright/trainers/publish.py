"""The folder of a finished run: a model that plain transformers loads, how it was trained, and a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from layerwright.core.errors import UserError
from layerwright.core.export import separate
from layerwright.core.files import flush, write_files
from layerwright.core.json_objects import read_object
from layerwright.core.load import first_line, quietly

RECORD = "training.json"
PAGE = "train.html"
RUN = "train"  # the folder of a run that is not finished
# Without its configuration a folder is no model, without the record no finished run: they come last.
_LAST = ("config.json", RECORD)

Page = Callable[[Mapping[str, Any]], str]


def finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the run that is finished in a folder; None where there is none.

    Raises:
        UserError: the folder holds a run with other settings, or something that is not of a run.
    """
    if (out / RECORD).exists():
        document = read_object(out / RECORD)
        known, asked = document.get("run") or {}, json.loads(json.dumps(settings))
        for name in [*known, *(asked.keys() - known.keys())]:
            if known.get(name) != asked.get(name):
                raise UserError(
                    f"{out} holds a finished run with {name} {json.dumps(known.get(name))} where "
                    f"{json.dumps(asked.get(name))} is asked for; choose another --out"
                )
        return document
    strange = [] if (out / RUN).exists() or not out.is_dir() else sorted(file.name for file in out.iterdir())
    if strange:
        raise UserError(f"{out} is not empty: it holds {', '.join(strange[:3])}; choose another --out")
    return None


def check_saveable(model: nn.Module) -> None:
    """Find out before the training that its result could not be saved.

    Raises:
        UserError: the model has no `save_pretrained`.
    """
    if not callable(getattr(model, "save_pretrained", None)):
        raise UserError(
            f"{type(model).__name__} has no save_pretrained, so that it cannot be saved in a folder; leave --out away "
            "and save the weights of the result yourself"
        )


def publish(
    out: Path, stage: Path, model: nn.Module, tokenizer: Any, document: Mapping[str, Any], page: Page | None
) -> None:
    """Write everything beside its place, then rename it.

    Args:
        out: the folder.
        stage: a folder on the same disk; emptied first.
        model: with `save_pretrained`.
        tokenizer: saved beside it, if there is one.
        document: for `training.json`.
        page: what makes `train.html` of the document.

    Raises:
        UserError: the folder cannot be written, the disk is full, or transformers refuses to save the model.
    """
    shutil.rmtree(stage, ignore_errors=True)
    try:
        with quietly():
            model.save_pretrained(stage, state_dict=separate(model))  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(stage)
        files: dict[str, Callable[[], str]] = {RECORD: lambda: json.dumps(document, indent=1, allow_nan=False)}
        if page is not None:
            files[PAGE] = lambda: page(document)
        write_files(stage, files)
        for file in stage.iterdir():
            flush(file)
        for file in sorted(stage.iterdir(), key=lambda file: (*(file.name == last for last in _LAST[::-1]), file.name)):
            file.replace(out / file.name)
    except UserError:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        words = getattr(error, "strerror", None) or first_line(error)
        shutil.rmtree(stage, ignore_errors=True)
        raise UserError(
            f"cannot write to {out}: {words}; free some space and ask for the same again: the training is kept there"
        ) from None
    except (ValueError, RuntimeError) as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise UserError(f"transformers cannot save {type(model).__name__}: {first_line(error)}") from None
