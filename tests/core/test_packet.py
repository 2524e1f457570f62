"""A packet comes back bit for bit, or is known to be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwright.core.errors import UserError
from layerwright.core.packet import Packet

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)


def packet() -> Packet:
    tensors = {str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype) for dtype in DTYPES}
    turned = torch.arange(6.0).reshape(2, 3).T
    tensors |= {"turned": turned, "view": turned[0], "empty": torch.zeros(0, 3), "number": torch.tensor(torch.nan)}
    return Packet({"keys": [["a", 1], None], "text": "∥ß\n"}, tensors)


def test_data_and_tensors_come_back(tmp_path: Path) -> None:
    packet().write(tmp_path / "new" / "record")
    for found in (Packet.from_bytes(packet().to_bytes()), Packet.read(tmp_path / "new" / "record")):
        assert found is not None
        assert found.data == packet().data
        assert found.tensors.keys() == packet().tensors.keys()
        for name, x in packet().tensors.items():
            assert found.tensors[name].dtype == x.dtype
            assert torch.equal(found.tensors[name].nan_to_num(7.0), x.nan_to_num(7.0))


def test_no_tensor_at_all() -> None:
    assert Packet.from_bytes(Packet({"a": 1}, {}).to_bytes()) == Packet({"a": 1}, {})


def test_any_flipped_bit_and_any_cut_is_found(tmp_path: Path) -> None:
    content = Packet({"a": 1}, {"x": torch.tensor([1.0])}).to_bytes()
    file = tmp_path / "record"
    for k in range(len(content)):
        for damaged in (content[:k] + bytes([content[k] ^ 1 << k % 8]) + content[k + 1 :], content[:k]):
            with pytest.raises(ValueError, match="damaged"):
                Packet.from_bytes(damaged)
    file.write_bytes(content[:-1])
    assert Packet.read(file) is None
    assert Packet.read(tmp_path / "none") is None


def test_what_json_cannot_hold_is_no_data() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Packet({"a": float("nan")}, {}).to_bytes()


def test_a_packet_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "record"
    packet().write(file)
    before = file.read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        packet().write(tmp_path / "file" / "record")
    with pytest.raises(TypeError):
        Packet({"a": object()}, {}).write(file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "record"]
