"""A manifest of checksums beside the weights, as safetensors itself does not notice a flipped bit.

`checksums.json` holds `{"schema": 1, "algorithm": "sha256 of dtype, shape and bytes", "tensors": {name: digest}}`. The
digest is SHA-256, which takes 0.6 s a GB where the processor has instructions for it. It covers dtype and shape too,
so that a flipped bit in a header is found as well as one in a weight.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.header import DTYPES, Entry
from layerwright.core.json_objects import read_object, shown

if TYPE_CHECKING:
    from hashlib import _Hash

MANIFEST = "checksums.json"
_SCHEMA = 1
_ALGORITHM = "sha256 of dtype, shape and bytes"
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_DIGEST = re.compile("[0-9a-f]{64}")


def begin(entry: Entry) -> _Hash:
    """The digest of a tensor, before its bytes are added with `update`.

    It starts with a line of dtype and shape as safetensors writes them, as in `F32 [2, 3]`.
    """
    return hashlib.sha256(f"{_CODES[entry.dtype]} {list(entry.shape)}\n".encode())


def read_manifest(folder: Path) -> dict[str, str] | None:
    """The digests by tensor name; None where the folder has no manifest.

    Raises:
        UserError: there is one that cannot be read, is damaged, or was written by something else.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    content = read_object(file)
    got = content.get("schema"), content.get("algorithm")
    if got != (_SCHEMA, _ALGORITHM):
        raise UserError(
            f"{file} has schema {shown(got[0])} and algorithm {shown(got[1])}; expected {_SCHEMA} and {_ALGORITHM!r}; "
            f"write it again with `lw checksum {folder}`, or move it away"
        )
    tensors = content.get("tensors")
    if not isinstance(tensors, dict):
        raise UserError(f"{file} has no object `tensors`; write it again with `lw checksum {folder}`")
    for name, digest in tensors.items():
        if not _is_digest(digest):
            raise UserError(f"{file} is damaged: tensor {shown(name)} has digest {shown(digest)}; get it again")
    return tensors


def check_writable(folder: Path) -> None:
    """Find out before hours of reading that no manifest can be written.

    Raises:
        UserError: the folder does not take new files.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {MANIFEST} into {folder}; it must lie beside the weights: change who may write")


def write_manifest(folder: Path, digests: Mapping[str, str]) -> Path:
    """Write the digests beside the weights; complete, or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    content = {"schema": _SCHEMA, "algorithm": _ALGORITHM, "tensors": dict(sorted(digests.items()))}
    write_files(folder, {MANIFEST: lambda: json.dumps(content, indent=1) + "\n"})
    return folder / MANIFEST


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
