"""With a manifest every damaged bit of a weight is found and named; without one, most pass for weights."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_cli import fails, run

from layerwright.core import checksums
from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.shards import Checkpoint

MANIFEST = "checksums.json"
TENSORS = {
    "a.weight": torch.arange(60.0).reshape(12, 5),
    "b.weight": torch.arange(40, dtype=torch.int32).reshape(8, 5),
    "c": torch.tensor(1.5),
    "d": torch.zeros(0, 3),
}


def seal(folder: Path) -> Path:
    """Write the manifest as `lw checksum` does."""
    digests = {entry.name: digest for entry, digest in Checkpoint.open_unchecked(folder).digests()}
    return checksums.write_manifest(folder, digests)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint with its manifest."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    seal(folder)
    return folder


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, with a manifest."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    seal(copy)
    return copy


def test_a_digest_is_of_dtype_shape_and_bytes(folder: Path) -> None:
    known = Checkpoint.open(folder).checksums
    assert known is not None
    assert known.keys() == TENSORS.keys()
    for name, start in {"a.weight": b"F32 [12, 5]\n", "b.weight": b"I32 [8, 5]\n", "c": b"F32 []\n"}.items():
        assert known[name] == hashlib.sha256(start + TENSORS[name].numpy().tobytes()).hexdigest()
    assert known["d"] == hashlib.sha256(b"F32 [0, 3]\n").hexdigest()
    content = json.loads((folder / MANIFEST).read_text())
    assert content == {"schema": 1, "algorithm": "sha256 of dtype, shape and bytes", "tensors": dict(known)}


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_named(seed: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    entries = [entry for entry in Checkpoint.open(folder).entries.values() if entry.nbytes]
    chance = random.Random(seed)
    for _ in range(100):
        hit = chance.choice(entries)
        bit = 8 * hit.start + chance.randrange(8 * hit.nbytes)
        flip(file, bit)
        checkpoint = Checkpoint.open(folder)
        for name in TENSORS:
            if name != hit.name:
                checkpoint.read([name])
        with pytest.raises(UserError, match=f"tensor '{hit.name}' in {file} does not match {MANIFEST}"):
            checkpoint.read(TENSORS)
        with pytest.raises(UserError, match=f"tensor '{hit.name}'"):
            checkpoint.verify()
        assert checkpoint.faults() == [f"tensor '{hit.name}' in model.safetensors is damaged"]
        flip(file, bit)
    assert Checkpoint.open(folder).faults() == []


def test_a_flipped_bit_in_the_header_is_found_or_harmless(folder: Path) -> None:
    file = folder / "model.safetensors"
    start = min(entry.start for entry in Checkpoint.open(folder).entries.values())
    sealed = Checkpoint.open(folder).entries
    outcomes = []
    for bit in range(8 * start):
        flip(file, bit)
        try:
            checkpoint = Checkpoint.open(folder)
        except UserError:
            outcomes.append("refused")
        else:
            faults = checkpoint.faults()
            outcomes.append("found" if faults else "harmless")
            assert faults or checkpoint.entries == sealed
        flip(file, bit)
    assert {outcome: outcomes.count(outcome) > 20 for outcome in set(outcomes)} == dict.fromkeys(
        ("refused", "found", "harmless"), True
    ), "the flips must reach every outcome; those in the metadata do no harm"


def test_without_a_manifest_a_flipped_bit_passes(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    checkpoint = Checkpoint.open(folder)
    flip(folder / "model.safetensors", 8 * checkpoint.entries["a.weight"].start + 24)
    assert not torch.equal(Checkpoint.open(folder).read(TENSORS)["a.weight"], TENSORS["a.weight"])
    Checkpoint.open(folder).verify()
    with pytest.raises(UserError, match=r"has no checksums\.json; write it with `lw checksum"):
        Checkpoint.open(folder).faults()


def test_tensors_that_the_manifest_does_not_know_are_read(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["tensors"]["a.weight"]
    content["tensors"]["e"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(content))
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.read(TENSORS)["a.weight"], TENSORS["a.weight"])
    assert checkpoint.faults() == [
        "tensor 'a.weight' in model.safetensors is not in checksums.json",
        "tensor 'e' of checksums.json is in no file",
    ]


def change(folder: Path, **fields: object) -> None:
    content = json.loads((folder / MANIFEST).read_text()) | fields
    (folder / MANIFEST).write_text(json.dumps(content))


BAD_MANIFESTS = {
    "cut short": (lambda f: (f / MANIFEST).write_text('{"schema": 1'), "not valid JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "holds a list"),
    "a folder": (lambda f: [(f / MANIFEST).unlink(), (f / MANIFEST).mkdir()], "cannot be read"),
    "a later schema": (lambda f: change(f, schema=2), "has schema 2 .*expected 1"),
    "another algorithm": (lambda f: change(f, algorithm="crc32"), "algorithm 'crc32'"),
    "no tensors": (lambda f: change(f, tensors=None), "no object `tensors`"),
    "a digest too short": (lambda f: change(f, tensors={"c": "00"}), "tensor 'c' has digest '00'"),
    "a digest that is a number": (lambda f: change(f, tensors={"c": 7}), "tensor 'c' has digest 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused(case: str, folder: Path) -> None:
    damage, words = BAD_MANIFESTS[case]
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        Checkpoint.open(folder)
    assert str(folder / MANIFEST) in str(error.value)


def test_a_model_is_loaded_only_if_it_matches_its_manifest(model: Path) -> None:
    load_model(model)
    entry = Checkpoint.open(model).entries["model.layers.1.mlp.up_proj.weight"]
    flip(model / "model.safetensors", 8 * entry.start + 5)
    with pytest.raises(UserError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' in .* does not match"):
        load_model(model)


def test_the_command_writes_and_verifies(model: Path, capsys) -> None:
    (model / MANIFEST).unlink()
    before = sorted(file.name for file in model.iterdir())
    code, out, err = run(capsys, "checksum", model)
    count = len(Checkpoint.open(model).entries)
    assert (code, err) == (0, "")
    assert out == f"{count} tensors: {model / MANIFEST}\n"
    assert sorted(file.name for file in model.iterdir()) == sorted([*before, MANIFEST])
    code, out, err = run(capsys, "checksum", model, "--verify")
    assert (code, out, err) == (0, f"{count} tensors match {model / MANIFEST}\n", "")


def test_the_command_names_every_fault(folder: Path, capsys) -> None:
    entries = Checkpoint.open(folder).entries
    for name in ("a.weight", "b.weight"):
        flip(folder / "model.safetensors", 8 * entries[name].start)
    content = json.loads((folder / MANIFEST).read_text())
    content["tensors"]["e"] = content["tensors"].pop("c")
    (folder / MANIFEST).write_text(json.dumps(content))
    code, out, _ = run(capsys, "checksum", folder, "--verify")
    assert code == 1
    assert sorted(out.splitlines()) == [
        "tensor 'a.weight' in model.safetensors is damaged",
        "tensor 'b.weight' in model.safetensors is damaged",
        "tensor 'c' in model.safetensors is not in checksums.json",
        "tensor 'e' of checksums.json is in no file",
    ]


def test_a_new_manifest_takes_the_place_of_a_damaged_one(folder: Path, capsys) -> None:
    (folder / MANIFEST).write_text("{")
    assert "not valid JSON" in fails(capsys, "checksum", folder, "--verify")
    assert run(capsys, "checksum", folder)[0] == 0
    assert run(capsys, "checksum", folder, "--verify")[0] == 0


def test_wrong_use_of_the_command(folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / MANIFEST).unlink()
    assert "write it with `lw checksum" in fails(capsys, "checksum", folder, "--verify")
    assert "no folder" in fails(capsys, "checksum", tmp_path / "none")
    assert "DIR" in fails(capsys, "checksum")
    monkeypatch.setattr(checksums.os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(Checkpoint, "digests", lambda *_: pytest.fail("everything was read first"))
    assert "cannot write checksums.json" in fails(capsys, "checksum", folder)


def test_an_interrupted_command_leaves_the_old_manifest(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (folder / MANIFEST).read_bytes()
    monkeypatch.setattr(checksums.json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, "checksum", folder)[0] == 130
    assert (folder / MANIFEST).read_bytes() == old
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST, "model.safetensors"]
