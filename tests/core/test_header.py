"""A header is refused in one line, or it describes exactly the bytes that are there."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from layerwright.core.errors import UserError
from layerwright.core.header import read_header
from layerwright.core.shards import Checkpoint

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.c": torch.arange(3),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(True),
}


def raw(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file with any header and any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def refusal(content: bytes, folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        Checkpoint.open(folder)
    message = str(error.value)
    assert str(file) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(file))
    return message


GOOD = entry()
HALVES = {"x": entry(shape=[1], offsets=[0, 4]), "y": entry(shape=[1], offsets=[4, 8])}
BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "length beyond the file": (raw({"x": GOOD}, length=1000), "a header of 1000 bytes in a file of"),
    "length of 2^63": (raw({"x": GOOD}, length=2**63), "expected at most 100000000"),
    "length of 2^64 - 1": (raw({"x": GOOD}, length=2**64 - 1), "expected at most 100000000"),
    "length of zero": (raw({"x": GOOD}, length=0), "not a JSON object"),
    "no JSON": (raw(b'{"x": '), "the header is not valid"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "the header is not valid"),
    "a list": (raw([]), "not a JSON object"),
    "space in front": (raw(b' {"x": 1}'), "not a JSON object"),
    "byte order mark": (raw(b'\xef\xbb\xbf{"x": 1}'), "not a JSON object"),
    "nested deeply": (raw(b'{"x":' * 100_000), "nested too deeply"),
    "a number of a million digits": (raw(b'{"x":' + b"9" * 10**6 + b"}"), "the header is not valid"),
    "a tensor twice": (raw(b'{"x":%b,"x":%b}' % ((json.dumps(GOOD).encode(),) * 2)), "'x' stands there twice"),
    "a field twice": (raw(b'{"x":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'), "'dtype' stands"),
    "metadata of numbers": (raw({"x": GOOD, "__metadata__": {"n": 1}}), "__metadata__"),
    "metadata is a list": (raw({"x": GOOD, "__metadata__": [1]}), "__metadata__"),
    "entry is a number": (raw({"x": 3}), "'x' is described by 3"),
    "entry is null": (raw({"x": None}), "'x' is described by None"),
    "unknown dtype": (raw({"x": entry("F3")}), "'x' has dtype 'F3'; expected one of BOOL, U8"),
    "dtype is a list": (raw({"x": entry(["F32"])}), "has dtype"),
    "no dtype": (raw({"x": {"shape": [2], "data_offsets": [0, 8]}}), "has dtype None"),
    "shape is a number": (raw({"x": entry(shape=2)}), "has shape 2"),
    "shape is negative": (raw({"x": entry(shape=[-1, -2])}), "has shape"),
    "shape is true": (raw({"x": entry(shape=[True, 2])}), "has shape"),
    "shape is a fraction": (raw({"x": entry(shape=[2.0])}), "has shape"),
    "shape overflows": (raw({"x": entry(shape=[2**62, 2**62])}), "too large"),
    "empty shape overflows": (raw({"x": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}, b""), "too large"),
    "size is over 63 bits": (raw({"x": entry(shape=[0, 2**63], offsets=[0, 0])}, b""), "has shape"),
    "offsets of one": (raw({"x": entry(offsets=[0])}), "expected a start and an end"),
    "offsets of three": (raw({"x": entry(offsets=[0, 8, 8])}), "expected a start and an end"),
    "offsets are negative": (raw({"x": entry(offsets=[-8, 0])}), "expected a start and an end"),
    "offsets are backwards": (raw({"x": entry(offsets=[8, 0])}), "expected a start and an end"),
    "offsets overflow": (raw({"x": entry(offsets=[2**64 - 8, 2**64])}), "expected a start and an end"),
    "offsets are wide": (raw({"x": entry(offsets=[0, 2**62])}), "takes 8 bytes"),
    "shape and offsets differ": (raw({"x": entry(shape=[3])}), "takes 12 bytes"),
    "dtype and offsets differ": (raw({"x": entry("F64")}), "takes 16 bytes"),
    "overlap": (raw({"x": GOOD, "y": entry(shape=[1], offsets=[4, 8])}), "'y' overlaps"),
    "the same bytes twice": (raw({"x": GOOD, "y": GOOD}), "'y' overlaps"),
    "a hole at the start": (raw({"x": entry(offsets=[8, 16])}, bytes(16)), "'x' comes after a hole"),
    "a hole in the middle": (raw(HALVES | {"z": entry(offsets=[12, 20])}, bytes(20)), "'z' comes after a hole"),
    "data beyond the tensors": (raw({"x": GOOD}, bytes(9)), "9 bytes of data; the header describes 8"),
    "data without tensors": (raw({}), "8 bytes of data; the header describes 0"),
    "too little data": (raw({"x": GOOD}, bytes(7)), "7 bytes of data; the header describes 8"),
    "half a surrogate pair": (raw(b'{"\\ud800":' + json.dumps(GOOD).encode() + b"}"), "surrogates not allowed"),
    "a long name with line breaks": (raw({"x\n" * 10**5: 3}), r"\n"),
    "all zeros": (bytes(64), "not a JSON object"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_refused(case: str, tmp_path: Path) -> None:
    content, words = BAD_HEADERS[case]
    assert words in refusal(content, tmp_path)


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    content = save(TENSORS)
    for length in range(len(content)):
        assert "damaged or cut short" in refusal(content[:length], tmp_path)
    assert "damaged or cut short" in refusal(content + b"\0", tmp_path)


def test_a_header_claimed_to_be_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(file, 200_000_000)  # sparse: so many bytes are there
    monkeypatch.setattr("layerwright.core.header.parse_object", lambda text: pytest.fail("the header was parsed"))
    with pytest.raises(UserError, match="a header of 100000001 bytes; expected at most"):
        read_header(file)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("nowhere")])
def test_what_is_no_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is not a file, or a link to nothing"):
        Checkpoint.open(tmp_path)


def test_padding_metadata_and_unknown_fields_are_allowed(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}, "x": entry(note="new")}).encode() + b" " * 7
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw(text, torch.tensor([1.0, 2.0]).numpy().tobytes()))
    assert Checkpoint.open(tmp_path).read(["x"])["x"].tolist() == [1.0, 2.0]
    assert [(e.name, e.shape, e.start, e.nbytes) for e in read_header(file).entries] == [("x", (2,), 8 + len(text), 8)]


def same_bytes(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    kind = ours.dtype is theirs.dtype and ours.shape == theirs.shape
    return kind and ours.contiguous().view(-1).view(torch.uint8).equal(theirs.contiguous().view(-1).view(torch.uint8))


def damage(content: bytes, length: int, chance: random.Random) -> bytes:
    """One to three flipped bits, replaced, dropped, inserted or copied bytes in the first `length`."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(length)
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at] = chance.choice(b'0123456789-."[]{},:eE \\uFBI\x00\xff')
        elif kind == 2:
            del changed[at]
        elif kind == 3:
            changed.insert(at, chance.choice(b'0129-"[]{},: '))
        else:
            source = chance.randrange(length)
            changed[at : at + 4] = changed[source : source + 4]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_header_is_refused_or_consistent(seed: int, tmp_path: Path) -> None:
    """Whatever is accepted is also accepted by the safetensors library, with the same tensors."""
    chance = random.Random(seed)
    content = save(TENSORS, metadata={"format": "pt"})
    header = 8 + int.from_bytes(content[:8], "little")
    file = tmp_path / "model.safetensors"
    refusals: list[str] = []
    for _ in range(1500):
        changed = damage(content, header, chance)
        file.write_bytes(changed)
        try:
            checkpoint = Checkpoint.open(tmp_path)
        except UserError as error:
            refusals.append(str(error))
            continue
        ours = checkpoint.read(checkpoint.entries)
        try:
            theirs = load(changed)
        except SafetensorError as error:
            pytest.fail(f"{changed!r} is accepted here, but {error}")
        assert ours.keys() == theirs.keys()
        assert all(same_bytes(ours[name], theirs[name]) for name in ours)
    assert 100 < len(refusals) < 1490, "the fuzz must reach both outcomes"
    assert not any("\n" in message for message in refusals)
