"""Files that are complete or not there: written beside their target, flushed, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from layerwright.core.errors import UserError


def write_files(folder: Path, files: Mapping[str, Callable[[], str | bytes]]) -> None:
    """Write every file beside its target first, then rename all: an older set is never left half replaced.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    fresh: list[tuple[Path, Path]] = []
    try:
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
            fresh.append((beside, target))
            made = content()
            with beside.open("wb") as stream:
                stream.write(made.encode() if isinstance(made, str) else made)
                stream.flush()
                os.fsync(stream.fileno())
        for beside, target in fresh:
            beside.replace(target)
        for parent in {target.parent for _, target in fresh}:
            flush(parent)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free some space or choose another --out"
        ) from None
    finally:
        for beside, _ in fresh:
            beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, outlive a power cut.

    Raises:
        OSError: the disk is full, or cannot be written. Not every system can flush a folder: that is no error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():
            raise
