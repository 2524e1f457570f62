"""States of the stream on disk: written once, read back one at a time, so that memory holds those of one batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from layerwright.core.errors import UserError

StreamKey = tuple[int, str]


# The start of a file, which names the dtype: a stream may leave the first block in another than it came in.
_HEADER = 64


class StateFile:
    """A file of tensors of one shape and dtype, one after another."""

    def __init__(self, path: Path, like: Tensor) -> None:
        """A file of tensors of the shape and device of `like`; it need not be there yet."""
        self.path, self._shape, self._device = path, like.shape, like.device

    def read(self, place: int = 0) -> Tensor:
        """The tensor at a place.

        Raises:
            UserError: it is not there, or not whole.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                dtype = self._dtype_of(stream.read(_HEADER))
                buffer = torch.empty(self._shape.numel() * dtype.itemsize, dtype=torch.uint8)
                stream.seek(_HEADER + place * len(buffer))
                view, done = buffer.numpy().data, 0
                while done < len(buffer) and (n := stream.readinto(view[done:])):
                    done += n
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; start again in an empty folder") from None
        if done < len(buffer):
            raise UserError(f"{self.path} is cut short; start again in an empty folder")
        return buffer.view(dtype).view(self._shape).to(self._device)

    def append(self, tensor: Tensor) -> None:
        """Write a tensor behind the last one.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        header = str(tensor.dtype).removeprefix("torch.").encode().ljust(_HEADER)
        try:
            with self.path.open("a+b", buffering=0) as stream:
                if stream.tell() == 0:
                    _write(stream, header)
                stream.seek(0)
                if tensor.shape != self._shape or stream.read(_HEADER) != header:
                    raise RuntimeError(f"a state of {tuple(tensor.shape)}, {tensor.dtype} among others")
                _write(stream, content)
        except OSError as error:
            raise self._unwritten(error) from None

    def restart(self) -> StateFile:
        """Forget what an interrupted run left."""
        self.path.unlink(missing_ok=True)
        return self

    def flush(self) -> None:
        """Bring what was written onto the disk.

        Raises:
            UserError: it does not take it; some file systems say only now that they are full.
        """
        try:
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
        except FileNotFoundError:
            pass  # nothing was written
        except OSError as error:
            raise self._unwritten(error) from None

    def _dtype_of(self, header: bytes) -> torch.dtype:
        dtype = getattr(torch, header.decode("ascii", "replace").strip(), None)
        if isinstance(dtype, torch.dtype):
            return dtype
        raise UserError(f"{self.path} is damaged; start again in an empty folder")

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write to {self.path.parent}: {error.strerror or error}; free some space and run again with the "
            "same --out, or choose another"
        )


def _write(stream: FileIO, content: bytes | memoryview) -> None:
    """All of it: the system may take less than what is given."""
    done = 0
    while done < len(content):
        done += stream.write(content[done:])


class States(Sequence[Tensor]):
    """States 0 … L of one batch, each a file."""

    def __init__(self, place: Path, depth: int, like: Tensor) -> None:
        """Files beside each other, whose names begin like `place`."""
        self._place, self._depth, self._like = place, depth, like

    def __len__(self) -> int:
        """Number of states, L + 1."""
        return self._depth + 1

    def __getitem__(self, k: int) -> Tensor:  # type: ignore[override]
        """One state."""
        return self.file(range(len(self))[k]).read()

    def file(self, k: int) -> StateFile:
        """Where a state lies."""
        return StateFile(self._place.with_name(f"{self._place.name}-{k:04d}"), self._like)


class StreamFiles(MutableMapping[StreamKey, Tensor]):
    """The skip streams of one batch: read from one file in the order of `keys`, written to the next one in that order.

    A run that is stopped in between still has the file it read from.
    """

    def __init__(self, source: StateFile, target: StateFile | None, keys: Sequence[StreamKey]) -> None:
        """The streams that were there after the last block, and where to put those after this one."""
        self._source, self._target, self._keys = source, target, list(keys)

    def __getitem__(self, key: StreamKey) -> Tensor:
        """A stream as the last block left it."""
        return self._source.read(self._keys.index(key))

    def __setitem__(self, key: StreamKey, state: Tensor) -> None:
        """A stream as this block leaves it."""
        assert self._target is not None
        self._target.append(state)

    def __delitem__(self, key: StreamKey) -> None:
        """Streams are kept to the end."""
        raise RuntimeError("a stream cannot be taken out")

    def __iter__(self) -> Iterator[StreamKey]:
        """Skipped blocks and kinds."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Number of streams."""
        return len(self._keys)
