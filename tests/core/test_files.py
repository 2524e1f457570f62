"""A set of files is replaced as one, or stays as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from layerwright.core.errors import UserError
from layerwright.core.files import write_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An older set."""
    write_files(tmp_path, {"a.txt": lambda: "old a", "tables/b.csv": lambda: b"old b"})
    return tmp_path


def held(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


OLD = {"a.txt": "old a", "tables/b.csv": "old b"}


def test_files_are_replaced_together(folder: Path) -> None:
    seen: list[dict[str, str]] = []

    def last() -> str:
        seen.append({name: text for name, text in held(folder).items() if not name.startswith(".")})
        return "new b"

    write_files(folder, {"a.txt": lambda: "new ä", "tables/b.csv": last})
    assert seen == [OLD]
    assert held(folder) == {"a.txt": "new ä", "tables/b.csv": "new b"}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_an_error_in_the_making_leaves_the_old_set(error: type[BaseException], folder: Path) -> None:
    def fail() -> str:
        raise error

    with pytest.raises(error):
        write_files(folder, {"a.txt": lambda: "new", "tables/b.csv": fail})
    assert held(folder) == OLD


@pytest.mark.parametrize("call", ["fsync", "write", "mkdir"])
def test_a_full_disk_leaves_the_old_set(call: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def full(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **more)

    target, name = {"fsync": (os, "fsync"), "write": (Path, "open"), "mkdir": (Path, "mkdir")}[call]
    real = getattr(target, name)
    monkeypatch.setattr(target, name, full)
    with pytest.raises(UserError, match=f"cannot write to {folder}: No space left on device; free some space or"):
        write_files(folder, {"a.txt": lambda: "new", "tables/b.csv": lambda: "new"})
    monkeypatch.undo()
    assert held(folder) == OLD


def test_a_folder_that_cannot_be_flushed_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems do not open folders."""

    def refuse(*args: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    write_files(folder, {"a.txt": lambda: "new"})
    monkeypatch.undo()
    assert held(folder)["a.txt"] == "new"
