"""The folder of a run that may be stopped anywhere: what was asked, what is finished, and who is at work."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.packet import Packet

_SETTINGS = "run.json"


class RunFolder:
    """Records of finished steps, for one run and its continuations.

    The lock is the operating system's, and falls with the process that holds it: a file left by a killed run is no
    obstacle.
    """

    def __init__(self, folder: Path) -> None:
        """A folder that is `opened` already."""
        self.folder = folder

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, settings: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Lock the folder, and check that what was begun there is what is asked now.

        Args:
            folder: made where it is not there.
            settings: plain data that the results depend on; another run's are refused.

        Raises:
            UserError: another process works there, it holds another run, or it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            who = _read(folder / "owner.json")
            raise UserError(
                f"another run (process {who.get('process')} on {who.get('host')}) is at work in {folder.parent}; wait "
                "for it, or choose another --out"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from None
        except NotImplementedError:
            raise UserError(f"{folder} is on a file system without locks; choose another --out") from None
        try:
            owner = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
            write_files(folder, {"owner.json": lambda: owner})
            run = cls(folder)
            run._check(json.loads(json.dumps(settings)))
            yield run
        finally:
            lock.release()

    def _check(self, settings: dict[str, Any]) -> None:
        known = _read(self.folder / _SETTINGS)
        if known and known != settings:
            raise UserError(
                f"{self.folder} holds another run, with {_difference(known, settings)}; ask for the same again, remove "
                "the folder, or choose another --out"
            )
        if not known or self._damaged():
            for old in (self.folder / "records", self.folder / "states"):
                shutil.rmtree(old, ignore_errors=True)
            write_files(self.folder, {_SETTINGS: lambda: json.dumps(settings, indent=1)})

    def _damaged(self) -> bool:
        """Whether a record cannot be read: later ones were made from it, and what it was made from is gone."""
        return any(Packet.read(file) is None for file in (self.folder / "records").glob("[!.]*"))

    def record(self, name: str) -> Packet | None:
        """What a finished step gave; None where it is not finished."""
        return Packet.read(self.folder / "records" / name)

    def commit(self, name: str, packet: Packet) -> None:
        """A step is finished."""
        packet.write(self.folder / "records" / name)

    def states(self) -> Path:
        """Where files go that are needed until the run is finished."""
        path = self.folder / "states"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        return path

    def finished(self) -> None:
        """Everything is done and saved elsewhere; a run that has begun in the folder since then keeps it."""
        if self.folder.is_dir():
            with suppress(Timeout, OSError), FileLock(self.folder / "lock", timeout=0):
                shutil.rmtree(self.folder, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --out")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first place where two nests of plain data differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(new.keys() - old.keys())]:
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    return f"{name} {_short(old)} where {_short(new)} is asked for"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
