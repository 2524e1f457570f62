"""The header of one safetensors file: which tensors it holds, and where, without touching their bytes.

A file is a length (u64, little endian), a JSON header of that length, and the tensors end to end. All of the header is
checked against the size of the file before any of it is used, as the file may be cut short, damaged or forged.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from layerwright.core.errors import UserError
from layerwright.core.json_objects import parse_object, shown

DTYPES: Mapping[str, torch.dtype] = {
    code: getattr(torch, name)
    for code, name in {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
        "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
        "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    }.items()
    if hasattr(torch, name)
}  # fmt: skip
_LONGEST = 100_000_000  # of a header, as in the safetensors library
_PREFIX = 8
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and where its bytes lie.

    Attributes:
        name: of the tensor.
        file: that holds it.
        dtype: of its elements.
        shape: empty for a single number.
        start: of its bytes, from the beginning of the file.
        nbytes: how many bytes.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


class Header(NamedTuple):
    """What a file held when its header was read; `sha256` is of the header alone."""

    file: Path
    size: int
    mtime_ns: int
    sha256: str
    entries: tuple[Entry, ...]


def read_header(file: Path) -> Header:
    """The header of a safetensors file, its entries in the order of the file.

    Raises:
        UserError: the file cannot be read, is a Git LFS pointer, or its header and its size contradict each other.
    """
    if not file.is_file():  # also before opening, which would wait for ever on a pipe
        raise UserError(f"{file} is not a file, or a link to nothing; get the whole checkpoint")
    try:
        with file.open("rb") as stream:
            state = os.fstat(stream.fileno())
            prefix = stream.read(len(_POINTER))
            length = int.from_bytes(prefix[:_PREFIX], "little")
            possible = len(prefix) >= _PREFIX and length <= min(_LONGEST, state.st_size - _PREFIX)
            stream.seek(_PREFIX)
            text = stream.read(length) if possible else b""
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    if prefix == _POINTER:
        raise UserError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull`")
    try:
        if not possible:
            raise ValueError(_impossible(length, state.st_size))
        entries = _entries(file, text, state.st_size - _PREFIX - length)
    except ValueError as error:
        raise UserError(f"{file} is damaged or cut short ({error}); get it again") from None
    return Header(file, state.st_size, state.st_mtime_ns, hashlib.sha256(text).hexdigest(), entries)


def _impossible(length: int, size: int) -> str:
    if size < _PREFIX:
        return f"{size} bytes are not even the length of a header"
    if length > _LONGEST:
        return f"a header of {length} bytes; expected at most {_LONGEST}"
    return f"a header of {length} bytes in a file of {size}"


def _entries(file: Path, text: bytes, data: int) -> tuple[Entry, ...]:
    """All tensors of a file; they must fill its `data` bytes without hole or overlap."""
    if not text.startswith(b"{"):
        raise ValueError("the header is not a JSON object")
    try:
        header = parse_object(text)
    except ValueError as error:
        raise ValueError(f"the header is not valid: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not an object of strings")
    origin = _PREFIX + len(text)
    entries = sorted(
        (_entry(file, name, fields, origin) for name, fields in header.items()),
        key=lambda entry: (entry.start, entry.nbytes),
    )
    position = origin
    for entry in entries:
        if entry.start != position:
            what = "overlaps with the tensor before it" if entry.start < position else "comes after a hole"
            raise ValueError(f"tensor {shown(entry.name)} {what}")
        position += entry.nbytes
    if position != origin + data:
        raise ValueError(f"{data} bytes of data; the header describes {position - origin}")
    return tuple(entries)


def _entry(file: Path, name: str, fields: Any, origin: int) -> Entry:
    what = f"tensor {shown(name)}"
    name.encode()  # half of a surrogate pair is no text: nobody could write this name down again
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is described by {shown(fields)}; expected an object")
    code: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise ValueError(f"{what} has dtype {shown(code)}; expected one of {', '.join(DTYPES)}")
    if not _are_sizes(shape):
        raise ValueError(f"{what} has shape {shown(shape)}; expected sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what} has offsets {shown(offsets)}; expected a start and an end")
    # Strides are products of sizes with 1 for 0, and signed: torch would fail where they overflow.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"{what} has shape {shown(shape)}, which is too large")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"{what}, {code} {shown(shape)}, takes {nbytes} bytes; its offsets are {shown(offsets)}")
    return Entry(name, file, dtype, tuple(shape), origin + offsets[0], nbytes)


def _are_sizes(values: Any) -> bool:
    # type() because JSON's true is an int to Python; the bound keeps products of many sizes short.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
