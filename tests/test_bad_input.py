"""Wrong input gives one line: what was got, what was expected, what to do. The command line exits with 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layerwright.core.data import load_data
from layerwright.core.errors import UserError
from layerwright.core.load import load_model


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


BAD_DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing path": (lambda t: t / "none.txt", ("none.txt", "expected")),
    "empty text": (lambda t: write(t / "a.txt", b" \n"), ("a.txt", "holds no text")),
    "short text": (lambda t: write(t / "a.txt", b"seven b"), ("7 tokens", "at least 8")),
    "not UTF-8": (lambda t: write(t / "a.txt", b"caf\xe9 au lait"), ("a.txt", "0xe9", "offset 3")),
    "not UTF-8, line 2": (lambda t: write(t / "a.jsonl", b'{"text": "abcdefgh"}\n{"text": "\xff"}'), ("offset 31",)),
    "not JSON": (lambda t: write(t / "a.jsonl", b'{"text": "abcdefgh"}\n{"text'), ("line 2", "not JSON")),
    "JSON, no object": (lambda t: write(t / "a.jsonl", b"[1]"), ("line 1", "list", "object")),
    "no such field": (lambda t: write(t / "a.jsonl", b'{"body": "x", "id": 1}'), ("'body', 'id'", "a.jsonl:FIELD")),
    "field of numbers": (lambda t: write(t / "a.jsonl", b'{"text": 1}'), ("line 1", "int")),
    "unknown suffix": (lambda t: write(t / "a.parquet", b"PAR1"), (".parquet", ".jsonl")),
    "empty folder": (lambda t: write(t / "folder" / "a.bin", b"x").parent, ("no text in folder",)),
    "not an archive": (lambda t: write(t / "a.npz", b"no zip"), ("a.npz", "cannot be read")),
    "nothing": (lambda t: [], ("empty",)),
    "a number": (lambda t: 3, ("int", "expected a path")),
    "no samples": (lambda t: torch.empty(0, 3), ("(0, 3)", "at least one sample")),
    "no first axis": (lambda t: torch.tensor(1.0), ("first axis",)),
    "unequal samples": (lambda t: {"a": torch.zeros(2), "b": torch.zeros(3)}, ("'a': 2", "'b': 3")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_data(case: str, tmp_path: Path, tokenizer) -> None:
    make, words = BAD_DATA[case]
    with pytest.raises(UserError) as error:
        load_data(make(tmp_path), None, tokenizer)
    message = one_line(error)
    assert all(word in message for word in words), message


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, input_ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError) as error:
        load_data(path)
    assert "Python objects" in one_line(error)


def test_arrays_of_other_names_or_of_text(tmp_path: Path, tiny_model) -> None:
    np.savez(tmp_path / "a.npz", tokens=np.zeros((2, 3), dtype=int))
    with pytest.raises(UserError, match=r"'tokens'.*input_ids"):
        load_data(tmp_path / "a.npz", tiny_model)
    np.savez(tmp_path / "b.npz", input_ids=np.array(["a", "b"]))
    with pytest.raises(UserError, match="expected a tensor of numbers"):
        load_data(tmp_path / "b.npz", tiny_model)


def test_text_without_a_tokenizer(text_file: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_data(text_file)


@pytest.mark.parametrize("option", ["length", "max_tokens", "batch_size"])
def test_a_size_of_zero(option: str, text_file: Path, tokenizer) -> None:
    with pytest.raises(UserError, match=f"{option} 0"):
        load_data(text_file, None, tokenizer, **{option: 0})


def damage(folder: Path, case: str) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if case == "without configuration":
        (folder / "config.json").unlink()
    elif case == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif case == "configuration is not JSON":
        (folder / "config.json").write_text("{")
    elif case == "configuration is a list":
        (folder / "config.json").write_text("[]")
    elif case == "unknown architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "nonesuch", "architectures": ["Nonesuch"]}))
    elif case == "without weights":
        weights.unlink()
    elif case == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif case == "truncated":
        weights.write_bytes(content[:-100])
    elif case == "cut in the header":
        weights.write_bytes(content[:50])
    elif case == "empty file":
        weights.write_bytes(b"")
    elif case == "surplus bytes":
        weights.write_bytes(content + b"x")
    elif case == "Git LFS pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif case == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")


BAD_FOLDERS = {
    "without configuration": "no config.json",
    "adapter": "merge it into its base model",
    "configuration is not JSON": "config.json is not valid JSON",
    "configuration is a list": "holds a list",
    "unknown architecture": "nonesuch",
    "without weights": "has no weights; expected model.safetensors",
    "pickle": r"only pickled weights \(pytorch_model.bin\).*can run any code",
    "truncated": "model.safetensors is damaged or cut short",
    "cut in the header": "model.safetensors is damaged or cut short",
    "empty file": "model.safetensors is damaged or cut short",
    "surplus bytes": "model.safetensors is damaged or cut short",
    "Git LFS pointer": "git lfs pull",
    "broken tokenizer": "tokenizer in .* cannot be loaded",
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_model_folder(case: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    damage(folder, case)
    with pytest.raises(UserError, match=BAD_FOLDERS[case]) as error:
        load_model(folder)
    one_line(error)


@pytest.mark.parametrize("name", ["./none", "/none/at all", "nobody/none", "none"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(UserError, match="no folder") as error:
        load_model(name)
    one_line(error)


def test_a_file_is_not_a_model(text_file: Path) -> None:
    with pytest.raises(UserError, match="expected the model's folder"):
        load_model(text_file)
