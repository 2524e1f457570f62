"""A folder that is published whole or not at all: built beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerwright.core.errors import UserError
from layerwright.core.files import flush
from layerwright.core.load import first_line


class Stage:
    """A folder that is being built.

    Attributes:
        folder: where to write.
        out: where it goes.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        """An empty folder beside its place."""
        self.folder, self.out = folder, out

    def publish(self) -> Path:
        """Put it in its place."""
        if self.out.is_dir():
            self.out.rmdir()
        return self._move(self.out)

    def mark(self) -> Path:
        """Keep it for inspection, beside its place and under a name that says that it failed."""
        failed = self.out.with_name(self.out.name + ".failed")
        shutil.rmtree(failed, ignore_errors=True)
        return self._move(failed)

    def _move(self, target: Path) -> Path:
        for file in self.folder.rglob("*"):
            if file.is_file():
                flush(file)
        self.folder.rename(target)
        flush(target.parent)
        return target


@contextmanager
def staged(out: Path) -> Iterator[Stage]:
    """Build a folder beside `out`; what is neither published nor marked is removed.

    Raises:
        UserError: `out` is there and not empty, or cannot be written, or the disk is full.
    """
    check_free(out)
    folder = out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield Stage(folder, out.absolute())
    except OSError as error:
        what = error.strerror or first_line(error)
        raise UserError(f"cannot write to {out}: {what}; free some space or choose another --out") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(out: Path) -> None:
    """Refuse a folder in which there is something already.

    Raises:
        UserError: it is a file, or not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}; choose another --out, or remove it")
