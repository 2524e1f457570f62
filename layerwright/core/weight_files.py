"""Which files of a folder hold the weights that transformers would load, and whether they agree with each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from layerwright.core.errors import UserError
from layerwright.core.header import Header, read_header
from layerwright.core.json_objects import read_object, shown

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_headers(folder: Path) -> list[Header]:
    """Headers of all files with weights: model.safetensors, or else what the index names.

    Raises:
        UserError: the folder has no weights, only pickled ones, or files that are damaged, cut short, missing or in
            contradiction to each other.
    """
    try:
        return _headers(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None


def _headers(folder: Path) -> list[Header]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; expected a folder with {WEIGHTS}")
    if os.path.lexists(folder / WEIGHTS):
        return [read_header(folder / WEIGHTS)]
    if not (folder / INDEX).is_file():
        raise UserError(_without_weights(folder))
    home = _weight_map(folder / INDEX)
    headers = []
    for name in sorted(set(home.values())):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which {INDEX} names; get the whole checkpoint")
        headers.append(read_header(folder / name))
    _check_index(folder / INDEX, home, headers)
    return headers


def _without_weights(folder: Path) -> str:
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        return (
            f"{folder} holds only pickled weights ({pickles[0]}), and loading a pickle can run any code; where you "
            "trust it, load it with transformers and save_pretrained(...) it as safetensors"
        )
    return f"{folder} has no weights; expected {WEIGHTS} or {INDEX}"


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor name. Links are followed, as files of the hub's cache are links; names must be plain."""
    home = read_object(index).get("weight_map")
    if not isinstance(home, dict) or not home:
        raise UserError(f"{index} has no weight_map of tensors; get it again")
    for tensor, name in home.items():
        plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\:")
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} puts tensor {shown(tensor)} into {shown(name)}; expected the plain name of a .safetensors "
                "file in the same folder; get the checkpoint from a source that you trust"
            )
    return home


def _check_index(index: Path, home: Mapping[str, str], headers: Iterable[Header]) -> None:
    """The index and the shards must say the same, so that every tensor is in one place."""
    found: dict[str, str] = {}
    for header in headers:
        for entry in header.entries:
            name, file = shown(entry.name), entry.file.name
            if entry.name in found:
                raise UserError(f"{index.parent} holds tensor {name} twice, in {found[entry.name]} and {file}")
            if entry.name not in home:
                raise UserError(f"{entry.file} holds tensor {name}, which {INDEX} does not name; get both again")
            found[entry.name] = file
    for tensor, file in home.items():
        if found.get(tensor) != file:
            where = f"it is in {found[tensor]}" if tensor in found else "it is not there"
            raise UserError(f"{index} puts tensor {shown(tensor)} into {file}, but {where}; get the checkpoint again")
