"""A packet: plain data and named tensors that belong together, as bytes or a file, without pickle.

Records of a streamed survey, results of jobs and what ranks of a distributed survey hand to each other are packets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from layerwright.core.files import write_files

_META = "packet"
_DIGEST = 32


class Packet(NamedTuple):
    """Plain data (what JSON can hold) and tensors by name.

    Example:
        >>> import torch
        >>> packet = Packet({"block": 3}, {"norm": torch.tensor([1.0, 2.0])})
        >>> again = Packet.from_bytes(packet.to_bytes())
        >>> again.data, again.tensors["norm"].tolist()
        ({'block': 3}, [1.0, 2.0])
    """

    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """A SHA-256 digest, then a safetensors file with the plain data in its header."""
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}
        tensors = tensors or {"": torch.zeros(0)}
        body = save(tensors, metadata={_META: json.dumps(self.data, allow_nan=False)})
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, content: bytes) -> Packet:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: these bytes are no packet, or were damaged.
        """
        body = content[_DIGEST:]
        if hashlib.sha256(body).digest() != content[:_DIGEST]:
            raise ValueError("damaged")
        try:
            tensors = load(body)
            length = int.from_bytes(body[:8], "little")
            data = json.loads(json.loads(body[8 : 8 + length])["__metadata__"][_META])
        except (SafetensorError, KeyError) as error:
            raise ValueError(str(error)) from None
        tensors.pop("", None)
        return cls(data, tensors)

    def write(self, file: Path) -> None:
        """Put the packet into a file, which is complete or not there.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        write_files(file.parent, {file.name: self.to_bytes})

    @classmethod
    def read(cls, file: Path) -> Packet | None:
        """The packet in a file; None where there is none, or what is there is damaged (then it is to be made again)."""
        try:
            return cls.from_bytes(file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
