"""Write safetensors files tensor by tensor: what is only moved is copied byte for byte, and nothing is held."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from layerwright.core.header import DTYPES, Entry
from layerwright.core.weight_files import INDEX, WEIGHTS

CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD = 5_000_000_000  # bytes, as transformers cuts them
_PIECE = 2**26
_ALIGNMENT = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Item:
    """A tensor to write: a copy of one in a checkpoint, or one that is made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Entry | None
    make: Callable[[], Tensor] | None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(
    folder: Path, items: Sequence[Item], *, shard: int = SHARD, progress: Progress = lambda stage, done, total: None
) -> None:
    """Write `model.safetensors`, or shards and their index, into a folder.

    Args:
        folder: where to.
        items: what; copies are quickest in the order of the files they come from.
        shard: the most bytes a file holds.
        progress: called with the MiB that are and will be written.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    # Larger numbers first, so that each lies at a multiple of its size.
    shards = [sorted(part, key=lambda item: -item.dtype.itemsize) for part in _shards(items, shard)]
    total, done = sum(item.nbytes for item in items), 0
    names = [WEIGHTS] if len(shards) == 1 else [_name(k, len(shards)) for k in range(len(shards))]
    for name, part in zip(names, shards):
        with (folder / name).open("wb") as out:
            out.write(_header(part))
            for run in _runs(part):
                done += _put(out, run)
                progress("MiB written", done >> 20, total >> 20)
            out.flush()
            os.fsync(out.fileno())
    if len(shards) > 1:
        home = {item.name: name for name, part in zip(names, shards) for item in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(home.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _name(k: int, count: int) -> str:
    stem, suffix = WEIGHTS.split(".", 1)
    return f"{stem}-{k + 1:05d}-of-{count:05d}.{suffix}"


def _shards(items: Iterable[Item], limit: int) -> Iterator[list[Item]]:
    part: list[Item] = []
    size = 0
    for item in items:
        if part and size + item.nbytes > limit:
            yield part
            part, size = [], 0
        part.append(item)
        size += item.nbytes
    yield part


def _header(items: Sequence[Item]) -> bytes:
    """Length and JSON: where each tensor lies, in the order in which they are written."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for item in items:
        fields[item.name] = {
            "dtype": CODES[item.dtype], "shape": list(item.shape), "data_offsets": [place, place + item.nbytes]
        }  # fmt: skip
        place += item.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _runs(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Copies that follow one another in the file they come from are one copy."""
    run: list[Item] = []
    for item in items:
        if run and not _follows(run[-1], item):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _follows(a: Item, b: Item) -> bool:
    if a.source is None or b.source is None:
        return False
    return a.source.file == b.source.file and a.source.start + a.source.nbytes == b.source.start


def _put(out: BinaryIO, run: Sequence[Item]) -> int:
    size = sum(item.nbytes for item in run)
    first = run[0]
    if first.source is not None:
        out.flush()
        with first.source.file.open("rb") as file:
            _copy(file.fileno(), first.source.start, out.fileno(), size)
        out.seek(0, os.SEEK_END)
        return size
    assert first.make is not None
    out.write(memoryview(first.make().detach().contiguous().flatten().view(torch.uint8).numpy().data))
    return size


def _copy(source: int, start: int, target: int, size: int) -> None:
    """Bytes of one file to the end of another, inside the system where it can."""
    end = os.lseek(target, 0, os.SEEK_END)
    done = 0
    try:
        while done < size:
            moved = os.copy_file_range(source, target, min(_PIECE, size - done), start + done, end + done)
            if not moved:
                raise OSError(f"a file became shorter while it was copied: {size - done} bytes are missing")
            done += moved
    except OSError as error:
        if done or error.errno is None:
            raise
        _through_memory(source, start, target, end, size)


def _through_memory(source: int, start: int, target: int, end: int, size: int) -> None:
    """The same for file systems that cannot copy between files."""
    buffer = memoryview(bytearray(min(_PIECE >> 3, size)))
    done = 0
    while done < size:
        got = os.preadv(source, [buffer[: size - done]], start + done)
        if not got:
            raise OSError(f"a file became shorter while it was copied: {size - done} bytes are missing")
        written = 0
        while written < got:
            written += os.pwrite(target, buffer[written:got], end + done + written)
        done += got
