"""The weights of a Hugging Face folder, tensor by tensor, in memory that is ours.

The safetensors library maps whole files, privately, which counts against a limit on data. Here the headers are parsed
once, and the tensors that are asked for are read into one buffer, with their checksums taken while their bytes are
still in the processor's cache.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layerwright.core.checksums import MANIFEST, begin, read_manifest
from layerwright.core.errors import UserError
from layerwright.core.header import Entry, Header
from layerwright.core.json_objects import shown
from layerwright.core.progress import Progress
from layerwright.core.weight_files import read_headers

__all__ = ["Checkpoint", "Entry"]

_ALIGNMENT = 64  # bytes: a cache line, and enough for every dtype and vector instruction
_PIECE = 1 << 20  # bytes of one read: small enough to be in cache when it is hashed
_PARTS = 512  # buffers of one read; Linux takes 1024


class _Part(NamedTuple):
    """Bytes of one tensor that belong at one place."""

    entry: Entry
    start: int  # in the file
    room: memoryview


class Checkpoint:
    """The tensors of a folder with `model.safetensors`, or with an index and shards.

    Attributes:
        folder: that was opened.
        entries: every tensor by name.
        bytes_read: from the files, by tensor name. Only one thread may read at a time.
    """

    def __init__(self, folder: Path, headers: Sequence[Header], checksums: Mapping[str, str] | None) -> None:
        self.folder = folder
        self.entries = {entry.name: entry for header in headers for entry in header.entries}
        self.bytes_read: Counter[str] = Counter()
        self._headers = {header.file: header for header in headers}
        self._checksums = None if checksums is None else MappingProxyType(dict(checksums))

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers and the manifest of checksums, nothing else.

        Raises:
            UserError: the folder has no weights, only pickled ones, or files that are damaged, cut short, missing or
                in contradiction to each other.
        """
        return cls(folder, read_headers(folder), read_manifest(folder))

    @classmethod
    def open_unchecked(cls, folder: Path) -> Checkpoint:
        """The same without the manifest, which may be damaged or out of date, as it is to be written anew."""
        return cls(folder, read_headers(folder), None)

    @property
    def checksums(self) -> Mapping[str, str] | None:
        """Digests by tensor name, as the manifest has them; None where there is no manifest."""
        return self._checksums

    def identity(self) -> dict[str, Any]:
        """Plain data that changes when the checkpoint changes; no tensor is read for it."""
        files = {
            header.file.name: {"size": header.size, "mtime_ns": header.mtime_ns, "header": header.sha256}
            for header in self._headers.values()
        }
        config, manifest = (_digest_of(self.folder / name) for name in ("config.json", MANIFEST))
        return {"files": files, "config": config, "checksums": manifest}

    def read(self, names: Iterable[str], *, pin: bool = False) -> dict[str, Tensor]:
        """The named tensors, as views into one buffer that they share.

        Args:
            names: of tensors, in any order; they are read in the order of the file, neighbours together.
            pin: take page-locked memory, from which a GPU can copy while it computes.

        Returns:
            The tensors in the order of `names`, on the CPU.

        Raises:
            UserError: there is no such tensor, it does not match its checksum, or its file changed or cannot be read.
        """
        names = list(dict.fromkeys(names))
        wanted = _in_file_order(self._entry(name) for name in names)
        places, size = _layout(wanted)
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        memory = memoryview(buffer.numpy().data)
        for file, entries in groupby(wanted, lambda entry: entry.file):
            self._fill(file, {entry: memory[places[entry.name] :][: entry.nbytes] for entry in entries})
        tensors = {}
        for entry in wanted:
            place = places[entry.name]
            tensors[entry.name] = buffer[place : place + entry.nbytes].view(entry.dtype).view(entry.shape)
        return {name: tensors[name] for name in names}

    def digests(self, progress: Progress = lambda stage, done, total: None) -> Iterator[tuple[Entry, str]]:
        """The digest of every tensor as it is on disk now, in the order of the files, in memory of one read.

        Args:
            progress: called with the MiB that were read and are to be read.

        Raises:
            UserError: a file changed since it was opened, or cannot be read.
        """
        scratch = memoryview(bytearray(_PIECE))
        done, total = 0, sum(entry.nbytes for entry in self.entries.values())
        for file, entries in groupby(_in_file_order(self.entries.values()), lambda entry: entry.file):
            with self._opened(file) as descriptor:
                for entry in entries:
                    digest = begin(entry)
                    for start in range(0, entry.nbytes, _PIECE):
                        room = scratch[: entry.nbytes - start]
                        _read(descriptor, [_Part(entry, entry.start + start, room)])
                        digest.update(room)
                        progress("MiB read", (done + start + len(room)) >> 20, total >> 20)
                    done += entry.nbytes
                    self.bytes_read[entry.name] += entry.nbytes
                    yield entry, digest.hexdigest()

    def verify(self) -> None:
        """Read all that the manifest knows against it, where there is one.

        Raises:
            UserError: a tensor does not match its checksum, or a file changed or cannot be read.
        """
        for entry, digest in self.digests() if self.checksums else ():
            self._compare(entry, digest)

    def faults(self, progress: Progress = lambda stage, done, total: None) -> list[str]:
        """One line for each tensor that is damaged, unknown to the manifest, or known to it alone.

        Raises:
            UserError: there is no manifest, or a file changed or cannot be read.
        """
        if self.checksums is None:
            raise UserError(f"{self.folder} has no {MANIFEST}; write it with `lw checksum {self.folder}`")
        found = []
        for entry, digest in self.digests(progress):
            what = f"tensor {shown(entry.name)} in {entry.file.name}"
            if entry.name not in self.checksums:
                found.append(f"{what} is not in {MANIFEST}")
            elif digest != self.checksums[entry.name]:
                found.append(f"{what} is damaged")
        absent = sorted(self.checksums.keys() - self.entries.keys())
        return found + [f"tensor {shown(name)} of {MANIFEST} is in no file" for name in absent]

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise UserError(f"{self.folder} has no tensor {shown(name)}; its weights and config.json differ")
        return self.entries[name]

    def _fill(self, file: Path, rooms: Mapping[Entry, memoryview]) -> None:
        """Read the tensors of one file, which come in its order, to their places."""
        known: Mapping[str, str] = self._checksums or {}
        digests = {entry: begin(entry) for entry in rooms if entry.name in known}
        with self._opened(file) as descriptor:
            for run in _runs(_parts(rooms)):
                _read(descriptor, run)
                for part in run:
                    if part.entry in digests:
                        digests[part.entry].update(part.room)
        self.bytes_read.update({entry.name: entry.nbytes for entry in rooms})
        for entry, digest in digests.items():
            self._compare(entry, digest.hexdigest())

    def _compare(self, entry: Entry, digest: str) -> None:
        known: Mapping[str, str] = self._checksums or {}
        if known.get(entry.name, digest) != digest:
            raise UserError(
                f"tensor {shown(entry.name)} in {entry.file} does not match {MANIFEST}: it was damaged or changed; "
                f"get the file again, or, if it was changed on purpose, run `lw checksum {self.folder}`"
            )

    @contextmanager
    def _opened(self, file: Path) -> Iterator[int]:
        """A descriptor of a file that is still what its header was read from."""
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{file} cannot be read any more: {error.strerror}; run again when it is back") from None
        try:
            self._check_unchanged(file, descriptor)
            yield descriptor
            self._check_unchanged(file, descriptor)  # again: it may be overwritten while it is read
        finally:
            os.close(descriptor)

    def _check_unchanged(self, file: Path, descriptor: int) -> None:
        state, header = os.fstat(descriptor), self._headers[file]
        if (state.st_size, state.st_mtime_ns) != (header.size, header.mtime_ns):
            raise UserError(f"{file} changed while it was in use; run again, and leave the checkpoint alone")


def _in_file_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.file, entry.start))


def _layout(entries: Iterable[Entry]) -> tuple[dict[str, int], int]:
    """Where each tensor goes in the buffer, and the size of the buffer."""
    places, size = {}, 0
    for entry in entries:
        places[entry.name] = size
        size += -(-entry.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, size


def _parts(rooms: Mapping[Entry, memoryview]) -> Iterator[_Part]:
    """Tensors cut into pieces that fit a read."""
    for entry, room in rooms.items():
        for done in range(0, entry.nbytes, _PIECE):
            yield _Part(entry, entry.start + done, room[done : done + _PIECE])


def _runs(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts that follow each other in the file, joined as far as one read goes."""
    run: list[_Part] = []
    end = size = 0
    for part in parts:
        if run and (part.start != end or size + len(part.room) > _PIECE or len(run) == _PARTS):
            yield run
            run, size = [], 0
        run.append(part)
        end, size = part.start + len(part.room), size + len(part.room)
    if run:
        yield run


def _read(descriptor: int, run: Sequence[_Part]) -> None:
    """Fill neighbouring parts from the file; the system may give less than what is asked for."""
    rooms, start = [part.room for part in run], run[0].start
    while rooms:
        try:
            got = os.preadv(descriptor, rooms, start)
        except OSError as error:
            raise UserError(_unread(run, error.strerror or str(error))) from None
        if got == 0:
            raise UserError(_unread(run, "it became shorter while it was in use"))
        start += got
        while rooms and got >= len(rooms[0]):
            got -= len(rooms.pop(0))
        if got:
            rooms[0] = rooms[0][got:]


def _unread(run: Sequence[_Part], why: str) -> str:
    first, last = run[0].entry, run[-1].entry
    names = shown(first.name) if first == last else f"{shown(first.name)} to {shown(last.name)}"
    return f"{first.file} cannot be read at tensor {names}: {why}; check the disk, or get the file again"


def _digest_of(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
