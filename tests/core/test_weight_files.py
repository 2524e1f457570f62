"""Shards and their index say the same, or are refused; nothing outside the folder is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from layerwright.core.errors import UserError
from layerwright.core.shards import Checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((3,), float(ord(name))) for name in names}


def write_index(folder: Path, **home: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": home}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tensors a, b in one shard and c, d in another."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors("a", "b"), folder / FIRST)
    save_file(tensors("c", "d"), folder / SECOND)
    write_index(folder, a=FIRST, b=FIRST, c=SECOND, d=SECOND)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Checkpoint.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shards_are_one_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert {name: entry.file.name for name, entry in checkpoint.entries.items()} == {
        "a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND,
    }  # fmt: skip
    read = checkpoint.read(["d", "a"])
    assert list(read) == ["d", "a"]
    assert torch.equal(read["d"], tensors("d")["d"])


def test_one_file_goes_before_an_index_as_in_transformers(folder: Path) -> None:
    save_file(tensors("e"), folder / "model.safetensors")
    assert list(Checkpoint.open(folder).entries) == ["e"]


def edit_index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(text)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), ("no folder",)),
    "nothing": (lambda f: [file.unlink() for file in f.iterdir()], ("has no weights; expected model.safetensors",)),
    "only a pickle": (
        lambda f: [f.joinpath(INDEX).unlink(), f.joinpath(FIRST).rename(f / "pytorch_model.bin")],
        ("only pickled weights (pytorch_model.bin)", "can run any code"),
    ),
    "a pickle in the index": (lambda f: write_index(f, a="pytorch_model.bin"), ("'a'", "'pytorch_model.bin'")),
    "index is not JSON": (edit_index("{"), (INDEX, "not valid JSON")),
    "index is a list": (edit_index("[]"), (INDEX, "holds a list")),
    "index without map": (edit_index("{}"), (INDEX, "no weight_map")),
    "index with an empty map": (edit_index('{"weight_map": {}}'), (INDEX, "no weight_map")),
    "index with a list as map": (edit_index('{"weight_map": ["a"]}'), (INDEX, "no weight_map")),
    "index with a tensor twice": (edit_index('{"weight_map": {"a": "x", "a": "y"}}'), ("'a' stands there twice",)),
    "a shard is missing": (lambda f: (f / SECOND).unlink(), (f"lacks {SECOND}, which {INDEX} names",)),
    "a shard is a folder": (lambda f: [(f / SECOND).unlink(), (f / SECOND).mkdir()], (f"lacks {SECOND}",)),
    "a shard is a link to nothing": (lambda f: [(f / SECOND).unlink(), (f / SECOND).symlink_to("no")], (SECOND,)),
    "a shard is empty": (lambda f: (f / SECOND).write_bytes(b""), (SECOND, "damaged or cut short")),
    "a shard is a pointer": (
        lambda f: (f / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        (SECOND, "git lfs pull"),
    ),
    "a tensor in two shards": (
        lambda f: save_file(tensors("b", "c", "d"), f / SECOND), ("'b' twice", FIRST, SECOND)
    ),
    "a tensor that the index does not name": (
        lambda f: save_file(tensors("c", "d", "e"), f / SECOND), ("'e'", SECOND, "does not name")
    ),
    "a tensor that no shard holds": (
        lambda f: save_file(tensors("c"), f / SECOND), ("'d'", SECOND, "it is not there")
    ),
    "a tensor in another shard": (
        lambda f: write_index(f, a=FIRST, b=SECOND, c=SECOND, d=SECOND), (f"'b' into {SECOND}", f"it is in {FIRST}")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused(case: str, folder: Path) -> None:
    change, words = BAD_FOLDERS[case]
    change(folder)
    message = refusal(folder)
    assert all(word in message for word in words), message


OUTSIDE = ["../secret.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors", "..", ".", "", None, 3,
           "x\n.safetensors", "x\0.safetensors", "config.json"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_plain_files_of_its_folder(name: object, folder: Path) -> None:
    save_file(tensors("c", "d"), folder.parent / "secret.safetensors")
    write_index(folder, a=FIRST, b=FIRST, c=name, d=name)
    message = refusal(folder)
    assert "'c'" in message
    assert "expected the plain name" in message


def test_an_index_names_no_absolute_path(folder: Path) -> None:
    write_index(folder, a=str(folder / FIRST), b=str(folder / FIRST))
    assert "expected the plain name" in refusal(folder)


def test_a_name_that_is_too_long_is_refused(folder: Path) -> None:
    write_index(folder, a="x" * 5000 + ".safetensors")
    assert "cannot be read" in refusal(folder)


def test_a_snapshot_of_the_hub_cache_is_links_to_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "5ca1ab1e", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"b10b{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/b10b{number}")
    read = Checkpoint.open(snapshot).read("abcd")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors(*"abcd").items())
