"""Numbers of a training run on disk: one line of JSON a step, and whole lines only, whatever stops the run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from errno import ENOSPC
from pathlib import Path
from typing import Any

from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.json_objects import parse_object


class TrainingLog:
    """A file of JSON lines, each with its `step`; a run that goes on adds to it.

    A step that is logged again takes the place of its older line: the run went back to a checkpoint.

    Attributes:
        file: where it is.
        last: the line at its end when it was opened; None where there was none.
    """

    def __init__(self, file: Path) -> None:
        """Open or begin a log; a line that an earlier run was stopped in is cut off.

        Raises:
            UserError: the file cannot be read or written, or holds something else.
        """
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes() if file.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(file, len(whole))
        except OSError as error:
            raise _unwritable(file, error) from None
        lines = [self._parsed(n, line) for n, line in enumerate(whole.splitlines())]
        self.last = lines[-1] if lines else None
        self._steps = {line["step"] for line in lines}

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the line of a step, or put it in the place of the one that the step has.

        Args:
            line: plain data with a `step`, without NaN.

        Raises:
            UserError: it cannot be written; the lines before it are whole.
        """
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            if line["step"] in self._steps:
                old = self.file.read_bytes().splitlines(keepends=True)
                new = [text if parse_object(other)["step"] == line["step"] else other for other in old]
                write_files(self.file.parent, {self.file.name: lambda: b"".join(new)})
            else:
                _append(self.file, text)
        except OSError as error:
            raise _unwritable(self.file, error) from None
        self._steps.add(line["step"])

    def _parsed(self, n: int, line: bytes) -> dict[str, Any]:
        try:
            found = parse_object(line)
            if not isinstance(found.get("step"), int):
                raise ValueError("holds no step")
        except ValueError as error:
            raise UserError(
                f"line {n + 1} of {self.file} {error}; expected the log of a training run; choose another out"
            ) from None
        return found


def check_folder(folder: Path) -> None:
    """Make a folder, and find out before the work, not after it, that nothing can be written there.

    Raises:
        UserError: nothing can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None


def scalar_writer() -> Callable[..., Any]:
    """What writes the files of TensorBoard into a folder.

    Raises:
        UserError: its package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "got tensorboard=True, but the package tensorboard is not installed; pip install tensorboard, or leave it "
            "out: measures.jsonl has the same numbers"
        ) from None
    return SummaryWriter


def _append(file: Path, text: bytes) -> None:
    """One write for the whole line, taken back where it did not fit."""
    with file.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            if stream.write(text) != len(text):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(end)
            raise


def _unwritable(file: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {file}: {error.strerror or error}; free some space or choose another out")
