"""Every kind of source becomes the batches that its documentation promises."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SENTENCE
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerwright.core.data import Data, load_data
from layerwright.core.errors import UserError


class Rows(list):
    """Stands in for a Hugging Face dataset: rows are dicts, and the columns are known."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def ids(data: Data) -> list[list[int]]:
    """All sequences without their padding."""
    rows = []
    for batch in data.batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        rows += [row[keep].tolist() for row, keep in zip(batch["input_ids"], mask, strict=True)]
    return rows


def test_text_is_cut_into_whole_sequences(text_file: Path, tiny_model: nn.Module, tokenizer) -> None:
    data = load_data(text_file, tiny_model, tokenizer, length=100)
    expected = tokenizer(text_file.read_text())["input_ids"]
    assert ids(data) == [expected[k : k + 100] for k in range(0, len(expected) - 99, 100)]
    assert (data.kind, data.length, data.prefix, data.tokens) == ("text", 100, 0, 100 * data.sequences)


def test_the_default_length_is_the_model_limit_where_that_is_lower(text_file: Path, tiny_model, tokenizer) -> None:
    assert load_data(text_file, tiny_model, tokenizer).length == 128
    assert load_data(text_file, None, tokenizer).length == 256
    with pytest.raises(UserError, match="at most 128"):
        load_data(text_file, tiny_model, tokenizer, length=129)


def test_a_special_token_goes_in_front_of_every_sequence(text_file: Path, front_tokenizer) -> None:
    data = load_data(text_file, None, front_tokenizer, length=50)
    assert data.prefix == 1
    assert all(row[0] == 0 and 0 not in row[1:] and len(row) == 50 for row in ids(data))
    assert load_data(text_file, None, front_tokenizer, prefix=0).prefix == 0


def test_a_text_shorter_than_one_sequence_is_one_shorter_sequence(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("eight by")
    data = load_data(tmp_path / "a.txt", None, tokenizer)
    assert (data.sequences, data.length, data.tokens) == (1, 8, 8)


def test_documents_of_a_folder_are_not_mixed(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("a" * 50)
    (tmp_path / "b" / "b.md").write_text("b" * 30)
    (tmp_path / ".hidden.txt").write_text("h" * 30)
    (tmp_path / "weights.bin").write_bytes(b"\xff" * 30)
    data = load_data(tmp_path, None, tokenizer, length=20)
    assert [len(set(row)) for row in ids(data)] == [1, 1, 1]
    assert data.sequences == 3


def test_ragged_documents_are_padded_on_the_right(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": c * n}) + "\n" for c, n in zip("abc", (9, 20, 40), strict=True)) + "\n")
    data = load_data(path, None, tokenizer, length=32)
    batch = data.batches[0]
    assert batch["attention_mask"].sum(1).tolist() == [9, 20, 32]
    assert bool((batch["attention_mask"].diff(dim=1) <= 0).all())
    assert data.tokens == 61
    field = tmp_path / "body.jsonl"
    field.write_text(json.dumps({"body": SENTENCE}))
    assert load_data(f"{field}:body", None, tokenizer).sequences == 1


def test_the_budget_takes_sequences_evenly(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(97 + k) * 10 for k in range(26)))
    data = load_data(tmp_path / "a.txt", None, tokenizer, length=10, max_tokens=40)
    assert [tokenizer.decode(row)[0] for row in ids(data)] == ["a", "g", "n", "t"]
    assert "read 4 of at least 26 sequences" in data.notes[0]


def test_the_digest_does_not_depend_on_the_batches(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in (9, 20, 13, 31)))
    digests = {load_data(path, None, tokenizer, batch_size=n).digest for n in (1, 2, 3, 4)}
    assert len(digests) == 1
    path.write_text(json.dumps({"text": "y" * 9}))
    assert load_data(path, None, tokenizer).digest not in digests


def test_text_in_other_containers(tokenizer) -> None:
    texts = [SENTENCE, SENTENCE * 2]
    listed = load_data(texts, None, tokenizer)
    assert load_data(Rows({"text": t} for t in texts), None, tokenizer).digest == listed.digest
    tokenized = Rows({"input_ids": tokenizer(t)["input_ids"]} for t in texts)
    assert ids(load_data(tokenized, None, None)) == [row["input_ids"] for row in tokenized]
    with pytest.raises(UserError, match="columns body"):
        load_data(Rows([{"body": "x"}]), None, tokenizer)
    with pytest.raises(UserError, match="several splits"):
        load_data(SimpleNamespace(column_names={"train": ["text"]}), None, tokenizer)


def test_demo_text_is_on_this_machine(tokenizer) -> None:
    data = load_data("demo", None, tokenizer, max_tokens=1024)
    assert (data.sequences, data.length) == (4, 256)
    assert load_data(None, None, tokenizer, max_tokens=1024).digest == data.digest
    assert "no data was named" in load_data(None, None, tokenizer, max_tokens=1024).notes[0]


def test_arrays_are_named_as_the_model_names_them(tmp_path: Path, tiny_model) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=np.arange(60, dtype=np.int32).reshape(6, 10))
    data = load_data(path, tiny_model, None, batch_size=4)
    assert (data.kind, data.sequences, data.tokens, data.prefix) == ("tokens", 6, 60, 0)
    assert [len(b["input_ids"]) for b in data.batches] == [4, 2]
    assert data.batches[0]["input_ids"].dtype is torch.int64


def test_tensors_take_the_name_and_dtype_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).bfloat16()
    x = torch.randn(5, 3)
    for source in (x, [x], x.numpy().astype(np.float64), {"input": x}, DataLoader(TensorDataset(x), batch_size=5)):
        batch = load_data(source, model).batches[0]
        assert batch["input"].dtype is torch.bfloat16
        assert torch.equal(batch["input"], x.bfloat16())


def test_ready_made_batches_are_kept_until_the_budget() -> None:
    loader = DataLoader(TensorDataset(torch.randn(64, 7, 3), torch.arange(64)), batch_size=8)
    data = load_data(loader, nn.Linear(3, 3), max_tokens=100)
    assert [sorted(b) for b in data.batches] == [["input", "labels"]] * 2
    assert (data.sequences, data.tokens, data.length) == (16, 112, 7)


def test_a_list_of_rows_of_ids_is_ragged_text() -> None:
    data = load_data([torch.arange(4), torch.arange(9)], None)
    assert ids(data) == [[0, 1, 2, 3], list(range(9))]


def test_ids_beyond_the_embedding_are_refused(tiny_model) -> None:
    with pytest.raises(UserError, match=r"token id 258.*258 rows.*do not belong together"):
        load_data({"input_ids": torch.tensor([[1, 258]])}, tiny_model)
    with pytest.raises(UserError, match="token id -1"):
        load_data({"input_ids": torch.tensor([[-1, 2]])}, tiny_model)


class Grey(nn.Module):
    """Takes one-channel pictures and says so in the way that Hugging Face models do."""

    main_input_name = "pixel_values"
    config = SimpleNamespace(image_size=6, num_channels=1)

    def forward(self, pixel_values):
        return pixel_values


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for k in range(3):
        image.new("RGB", (10, 4 + k), (255 * (k % 2),) * 3).save(tmp_path / f"{k}.png")
    data = load_data(tmp_path, Grey())
    assert (data.kind, data.sequences, tuple(data.batches[0]["pixel_values"].shape)) == ("images", 3, (3, 1, 6, 6))
    assert data.batches[0]["pixel_values"].amax((1, 2, 3)).tolist() == [-1.0, 1.0, -1.0]
    assert load_data(tmp_path, Grey(), max_tokens=512).sequences == 2
    (tmp_path / "3.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"3\.png is not an image"):
        load_data(tmp_path, Grey())


def test_the_model_prepares_images_with_its_own_processor(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "images").mkdir()
    image.new("RGB", (10, 10), (255, 255, 255)).save(tmp_path / "images" / "a.png")
    model = Grey()
    model.config, model.name_or_path = SimpleNamespace(num_channels=3), str(tmp_path)
    data = load_data(tmp_path / "images", model)
    assert tuple(data.batches[0]["pixel_values"].shape) == (1, 3, 8, 8)
    assert torch.allclose(data.batches[0]["pixel_values"], torch.ones(()))
    assert "ViTImageProcessor" in data.notes[-1]
