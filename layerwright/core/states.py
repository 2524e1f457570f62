"""States of the stream on disk: written once, read back one at a time, so that memory holds those of one batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from layerwright.core.errors import UserError

StreamKey = tuple[int, str]


class StateFile:
    """A file of equally shaped tensors, one after another."""

    def __init__(self, path: Path, like: Tensor) -> None:
        """A file of tensors of the shape, dtype and device of `like`; it need not be there yet."""
        self.path, self._shape, self._dtype, self._device = path, like.shape, like.dtype, like.device
        self._nbytes = like.numel() * like.element_size()

    def read(self, place: int = 0) -> Tensor:
        """The tensor at a place.

        Raises:
            UserError: it is not there, or not whole.
        """
        buffer = torch.empty(self._nbytes, dtype=torch.uint8)
        view = buffer.numpy().data
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(place * self._nbytes)
                done = 0
                while done < self._nbytes and (n := stream.readinto(view[done:])):
                    done += n
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; start again in an empty folder") from None
        if done < self._nbytes:
            raise UserError(f"{self.path} is cut short; start again in an empty folder")
        return buffer.view(self._dtype).view(self._shape).to(self._device)

    def append(self, tensor: Tensor) -> None:
        """Write a tensor behind the last one.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        if tensor.shape != self._shape or tensor.dtype != self._dtype:
            raise RuntimeError(f"a state of {tuple(tensor.shape)}, {tensor.dtype} among others of {self._shape}")
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        try:
            with self.path.open("ab", buffering=0) as stream:
                done = 0
                while done < len(content):
                    done += stream.write(content[done:])
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path.parent}: {error.strerror or error}; free some space and run again with "
                "the same --out, or choose another"
            ) from None

    def restart(self) -> StateFile:
        """Forget what an interrupted run left."""
        self.path.unlink(missing_ok=True)
        return self

    def flush(self) -> None:
        """Bring what was written onto the disk."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())


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
