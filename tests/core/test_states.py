"""States come back from disk bit for bit, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.states import StateFile, States, StreamFiles

SHAPE = (2, 3, 4)


def state(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(x: Tensor) -> list[int]:
    return x.contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_come_back_bit_for_bit_in_their_order(dtype: torch.dtype, tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a", state())
    strange = state(dtype, 1)
    strange.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, -0.0, torch.finfo(dtype).tiny / 2], dtype=dtype)
    written = [state(dtype), strange, state(dtype, 2).transpose(0, 2).contiguous().transpose(0, 2)]
    for x in written:
        file.append(x)
    again = StateFile(tmp_path / "a", state(torch.bfloat16))  # what is read knows its dtype
    for place in (2, 0, 1):
        found = again.read(place)
        assert found.dtype == dtype
        assert bits(found) == bits(written[place])
    found.zero_()  # it is ours to write into
    assert bits(again.read(1)) == bits(strange)


def test_a_file_holds_tensors_of_one_kind(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a", state())
    file.append(state())
    for other in (state(torch.bfloat16), state()[:1]):
        with pytest.raises(RuntimeError, match="among others"):
            file.append(other)
    with pytest.raises(RuntimeError, match="among others"):
        StateFile(tmp_path / "b", state()).append(state()[:1])


def test_what_an_interrupted_run_left_is_forgotten(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a", state())
    file.append(state(seed=1))
    file.restart().append(state(seed=2))
    assert bits(file.read()) == bits(state(seed=2))
    file.flush()
    file.restart().restart()
    file.flush()
    assert not file.path.exists()


def refusal(file: StateFile, place: int = 0) -> str:
    with pytest.raises(UserError) as error:
        file.read(place)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_whole_is_not_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a", state())
    assert f"{file.path} cannot be read: No such file" in refusal(file)
    file.append(state())
    assert f"{file.path} is cut short; start again in an empty folder" in refusal(file, 1)
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-1])
    assert "is cut short" in refusal(file)
    for header in (b"", b"float31", b"nn", b"\xff"):
        file.path.write_bytes(header.ljust(64) + content[64:])
        assert f"{file.path} is damaged; start again" in refusal(file)


class Slow:
    """A disk that takes and gives a few bytes at a time, and is full after some."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream, self._room = stream, room

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *args: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, content: Any) -> int:
        if self._room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._stream.write(content[:7])
        self._room -= done
        return done

    def readinto(self, view: Any) -> int:
        return self._stream.readinto(view[:5])


@pytest.mark.parametrize("room", [0, 40, 100, 10_000])
def test_short_writes_are_continued_and_a_full_disk_is_said(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **more: Slow(real(self, *args, **more), room))
    file = StateFile(tmp_path / "a", state())
    if room == 10_000:
        file.append(state())
        assert bits(file.read()) == bits(state())
        return
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}: No space left on device; free some space and"):
        file.append(state())


def test_a_disk_that_says_late_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file = StateFile(tmp_path / "a", state())
    file.append(state())
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="Disk quota exceeded"):
        file.flush()


def test_states_of_a_batch_are_a_sequence(tmp_path: Path) -> None:
    states = States(tmp_path / "0000-state", 2, state())
    for k in range(3):
        states.file(k).append(state(seed=k))
    assert len(states) == 3
    assert bits(states[-1]) == bits(state(seed=2))
    assert [bits(x) for x in states] == [bits(state(seed=k)) for k in range(3)]
    with pytest.raises(IndexError):
        states[3]


def test_streams_are_read_from_one_file_and_written_to_the_next(tmp_path: Path) -> None:
    source, target = (StateFile(tmp_path / name, state()) for name in "ab")
    keys = [(0, "later"), (0, "future"), (1, "later")]
    for seed, _ in enumerate(keys):
        source.append(state(seed=seed))
    streams = StreamFiles(source, target, keys)
    assert list(streams) == keys
    assert len(streams) == 3
    for key in list(streams):
        streams[key] = streams[key] + 1
    streams[1, "future"] = state(seed=9)
    assert bits(streams[0, "future"]) == bits(state(seed=1)), "the file that is read stays as it was"
    after = StreamFiles(target, None, [*keys, (1, "future")])
    assert [bits(x) for x in after.values()] == [bits(state(seed=s) + 1) for s in range(3)] + [bits(state(seed=9))]
    with pytest.raises(RuntimeError):
        del streams[keys[0]]
