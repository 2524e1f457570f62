"""Tensors are read bit for bit, each byte once, into memory that is ours."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerwright.core import shards
from layerwright.core.errors import UserError
from layerwright.core.shards import Checkpoint
from layerwright.core.weight_files import INDEX

DTYPES = [
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
]  # fmt: skip


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.dtype is theirs.dtype and ours.shape == theirs.shape and bits(ours) == bits(theirs)


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits that the dtype can hold: also NaN, infinities and subnormal numbers."""
    most = 2 if dtype is torch.bool else 256
    flat = torch.randint(most, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tensors of many dtypes and awkward sizes in three shards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {name: random_bits(getattr(torch, name), 3, 5) for name in DTYPES}
        made |= {"number": torch.tensor(2.5), "empty": torch.zeros(4, 0, 2), "flag": torch.tensor(True)}
        made |= {"long": random_bits(torch.uint8, 1000), "nan": torch.tensor([float("nan"), -0.0])}
    home = {}
    for k in range(3):
        shard = dict(list(made.items())[k::3])
        save_file(shard, tmp_path / f"model-{k}.safetensors")
        home |= dict.fromkeys(shard, f"model-{k}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": home}))
    return tmp_path


def expected(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.parametrize("piece, parts", [(1 << 20, 512), (7, 512), (64, 2), (1 << 20, 1)])
def test_tensors_equal_those_of_the_safetensors_library(
    piece: int, parts: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_PIECE", piece)
    monkeypatch.setattr(shards, "_PARTS", parts)
    wanted = expected(folder)
    read = Checkpoint.open(folder).read(wanted)
    assert read.keys() == wanted.keys()
    assert [name for name in wanted if not same(read[name], wanted[name])] == []


def test_a_real_model_in_one_file(tiny_folder: Path) -> None:
    wanted = expected(tiny_folder)
    checkpoint = Checkpoint.open(tiny_folder)
    assert all(same(checkpoint.read([name])[name], tensor) for name, tensor in wanted.items())
    assert checkpoint.checksums is None


def test_tensors_are_aligned_views_of_one_buffer(folder: Path) -> None:
    read = Checkpoint.open(folder).read(["float16", "bool", "number", "float64"])
    assert len({tensor.untyped_storage().data_ptr() for tensor in read.values()}) == 1
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())
    assert all(tensor.is_contiguous() and not tensor.is_pinned() for tensor in read.values())
    read["float16"].fill_(1)  # it is ours to write into


def test_nothing_read_is_an_empty_answer(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.read([]) == {}
    assert checkpoint.read(["empty"])["empty"].shape == (4, 0, 2)
    assert checkpoint.bytes_read.total() == 0


def test_bytes_are_counted_each_time_they_are_read(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    checkpoint.read(["long", "int64", "long"])
    assert checkpoint.bytes_read == {"long": 1000, "int64": 120}
    checkpoint.read(["long"])
    assert checkpoint.bytes_read == {"long": 2000, "int64": 120}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and size of every read of the system."""
    seen: list[tuple[int, int]] = []
    system = os.preadv

    def preadv(descriptor: int, rooms: list[memoryview], start: int) -> int:
        seen.append((start, sum(map(len, rooms))))
        return system(descriptor, rooms, start)

    monkeypatch.setattr(os, "preadv", preadv)
    return seen


def test_neighbours_are_read_together_in_the_order_of_the_file(tmp_path: Path, calls: list[tuple[int, int]]) -> None:
    save_file({name: torch.zeros(10) for name in "abcdef"}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    first = checkpoint.entries["a"].start
    checkpoint.read("fbaec")
    assert calls == [(first, 120), (first + 160, 80)]


def test_more_neighbours_than_the_system_takes_at_once(tmp_path: Path) -> None:
    made = {f"{k:04}": torch.tensor(float(k)) for k in range(os.sysconf("SC_IOV_MAX") + 10)}
    save_file(made, tmp_path / "model.safetensors")
    assert torch.stack(list(Checkpoint.open(tmp_path).read(made).values())).equal(torch.stack(list(made.values())))


def test_digests_take_the_memory_of_one_read(
    folder: Path, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_PIECE", 64)
    checkpoint = Checkpoint.open(folder)
    whole = sum(entry.nbytes for entry in checkpoint.entries.values())
    seen = []
    digests = dict(checkpoint.digests(lambda stage, done, total: seen.append((done, total))))
    assert list(digests) == sorted(checkpoint.entries.values(), key=lambda entry: (entry.file, entry.start))
    assert max(size for _, size in calls) == 64
    assert sum(size for _, size in calls) == checkpoint.bytes_read.total() == whole
    assert len(seen) == len(calls)


def test_a_read_that_gives_less_is_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = os.pread
    asked = []

    def preadv(descriptor: int, rooms: list[memoryview], start: int) -> int:
        """At most 13 bytes, over the ends of the rooms."""
        content = system(descriptor, min(13, sum(map(len, rooms))), start)
        asked.append(len(content))
        for room in rooms:
            part, content = content[: len(room)], content[len(room) :]
            room[: len(part)] = part
        return asked[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    wanted = expected(folder)
    read = Checkpoint.open(folder).read(wanted)
    assert all(same(read[name], wanted[name]) for name in wanted)
    assert max(asked) == 13


def refusal(checkpoint: Checkpoint, *names: str) -> str:
    with pytest.raises(UserError) as error:
        checkpoint.read(names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_tensor_that_is_not_there(folder: Path) -> None:
    assert "has no tensor 'lm_head'" in refusal(Checkpoint.open(folder), "long", "lm_head")


def test_a_file_that_vanished_or_changed_since_opening(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    file = checkpoint.entries["long"].file
    content = file.read_bytes()
    file.unlink()
    assert f"{file} cannot be read any more" in refusal(checkpoint, "long")
    file.write_bytes(content[:-1])
    assert f"{file} changed while it was in use" in refusal(checkpoint, "long")
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))  # rewritten: equally long, but perhaps with other tensors at other places
    assert f"{file} changed while it was in use" in refusal(checkpoint, "long")
    assert checkpoint.bytes_read.total() == 0


@pytest.mark.parametrize("fault", ["shorter", "rewritten", "disk"])
def test_a_file_that_fails_while_it_is_read(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder)
    entry = checkpoint.entries["long"]
    system = os.preadv

    def preadv(descriptor: int, rooms: list[memoryview], start: int) -> int:
        if fault == "disk":
            raise OSError(errno.EIO, "Input/output error")
        if fault == "shorter":
            os.truncate(entry.file, entry.start + 10)
        if fault == "rewritten":
            os.utime(entry.file, ns=(0, 0))
        return system(descriptor, rooms, start)

    monkeypatch.setattr(os, "preadv", preadv)
    words = {"disk": "'long': Input/output error", "shorter": "'long': it became shorter", "rewritten": "changed while"}
    message = refusal(checkpoint, "long")
    assert str(entry.file) in message
    assert words[fault] in message


def test_no_descriptor_is_left_open(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    before = len(os.listdir("/proc/self/fd"))
    checkpoint.read(checkpoint.entries)
    list(checkpoint.digests())
    checkpoint.entries["long"].file.unlink()
    refusal(checkpoint, *checkpoint.entries)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_identity_is_plain_and_changes_with_the_checkpoint(folder: Path) -> None:
    def identity() -> str:
        return json.dumps(Checkpoint.open(folder).identity(), sort_keys=True)

    seen = [identity()]
    assert identity() == seen[0]
    assert str(folder) not in seen[0], "a checkpoint that is moved stays the same"
    file = folder / "model-0.safetensors"
    (folder / "config.json").write_text("{}")
    seen.append(identity())
    (folder / "config.json").write_text('{"a": 1}')
    seen.append(identity())
    os.utime(file, ns=(1, 1))
    seen.append(identity())
    header = file.read_bytes().replace(b'"F32"', b'"I32"', 1)
    file.write_bytes(header)
    os.utime(file, ns=(1, 1))
    seen.append(identity())
    empty = {"schema": 1, "algorithm": "sha256 of dtype, shape and bytes", "tensors": {}}
    (folder / "checksums.json").write_text(json.dumps(empty))
    seen.append(identity())
    assert len(set(seen)) == len(seen)


CAPPED = """
import resource, sys
from pathlib import Path
import torch
from layerwright.core.shards import Checkpoint

torch.zeros(1000).sum()
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
checkpoint = Checkpoint.open(Path(sys.argv[1]))
print(checkpoint.read(["small"])["small"].tolist())
try:
    checkpoint.read(["large"])
except RuntimeError as error:
    print("memory" in str(error))
"""


def test_a_tensor_of_a_checkpoint_larger_than_memory(tmp_path: Path) -> None:
    """A sparse file of 16 GiB under a limit of 1 GiB; that the large tensor fails shows that the limit holds."""
    large, small = 2**34, torch.tensor([1.0, 2.0])
    header = json.dumps({
        "large": {"dtype": "U8", "shape": [large], "data_offsets": [0, large]},
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [large, large + 8]},
    }).encode()  # fmt: skip
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.seek(large, os.SEEK_CUR)
        stream.write(small.numpy().tobytes())
    done = subprocess.run([sys.executable, "-c", CAPPED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[1.0, 2.0]", "True"], done.stderr


def test_page_locked_memory_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    system = torch.empty

    def empty(*size: int, pin_memory: bool, **settings: object) -> torch.Tensor:
        asked.append(pin_memory)
        return system(*size, **settings)  # a machine without a GPU has none

    monkeypatch.setattr(torch, "empty", empty)
    checkpoint = Checkpoint.open(folder)
    checkpoint.read(["long"])
    checkpoint.read(["long"], pin=True)
    assert asked == [False, True]
