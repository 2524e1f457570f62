"""Documents to train on and documents held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from zoo import llama, token_ids

from layerwright.core import text
from layerwright.core.data import load_data
from layerwright.core.errors import UserError
from layerwright.trainers import corpus as module
from layerwright.trainers.corpus import Corpus, Sample, collate, read_corpus

CPU = torch.device("cpu")
Read = Callable[..., Corpus]


@pytest.fixture
def read(tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Read:
    def of(source: Any, length: int = 16, tokens: int = 10_000, **more: Any) -> Corpus:
        return read_corpus(source, tiny_model, tokenizer, length=length, tokens=tokens, **more)

    return of


def words(seed: int, characters: int = 100) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefgh ") for _ in range(characters))


def texts(samples: list[Sample], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(sample["input_ids"].long()) for sample in samples]


def refused(read: Read, *args: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        read(*args, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_sequence_is_of_a_document_on_the_other_side(read: Read, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [words(k) for k in range(60)]
    found = read(documents)
    train, held_out = texts(found.train, tokenizer), texts(found.held_out, tokenizer)
    from_train = {k for k, document in enumerate(documents) for piece in train if piece in document}
    from_held_out = {k for k, document in enumerate(documents) for piece in held_out if piece in document}
    assert not from_train & from_held_out
    assert from_train | from_held_out == set(range(60))
    assert len(from_held_out) == 3
    assert len(train) + len(held_out) == 60 * (100 // 16)
    assert found.documents == [k // 6 for k in range(18)]
    assert {len(sample["input_ids"]) for sample in found.train} == {16}


def test_the_split_depends_on_the_documents_alone(read: Read, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [words(k) for k in range(40)]
    found = read(documents)
    assert read(documents[::-1]).to_dict() == found.to_dict()
    assert read([*documents, documents[7]]).to_dict()["digest"] == found.to_dict()["digest"]
    again = read([*documents[:-1], words(99)])
    assert again.to_dict()["digest"] != found.to_dict()["digest"]


def test_copies_of_a_document_are_not_on_both_sides(read: Read) -> None:
    found = read([words(k % 10) for k in range(40)])
    seen = {tuple(sample["input_ids"].tolist()) for sample in found.train}
    assert not any(tuple(sample["input_ids"].tolist()) in seen for sample in found.held_out)
    assert found.notes == ("documents that are exact copies of others and were left out: 30",)


def test_the_end_of_a_single_document_is_held_out(read: Read, tokenizer: PreTrainedTokenizerFast) -> None:
    document = words(0, 16 * 30)
    found = read([document])
    assert "".join(texts([*found.train, *found.held_out], tokenizer)) == document
    assert (len(found.train), found.documents) == (27, [0, 1, 2])
    assert "its last 3 sequences are held out" in found.notes[-1]


def test_no_more_is_tokenized_than_is_needed(read: Read) -> None:
    seen: list[tuple[int, int]] = []
    found = read([words(k) for k in range(100)], tokens=300, progress=lambda done, total: seen.append((done, total)))
    assert 300 <= sum(len(sample["input_ids"]) for sample in found.train) < 300 + 100
    assert len(found.documents) == 5 * 6
    assert seen[-1] == (300, 300)
    assert seen == sorted(seen)


def test_documents_come_from_a_stretch_of_a_long_source(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST", 1000)
    monkeypatch.setattr(module, "_SPREAD", 1)
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield words(asked)

    monkeypatch.setattr(text, "documents", lambda path, **more: endless())
    found = read(Path(__file__), tokens=100)
    assert asked == 17
    assert found.notes == ("documents were chosen from the first 16, of 1,600 characters",)


def test_held_out_sequences_are_within_a_budget(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 160)
    found = read([words(k) for k in range(100)])
    assert len(found.held_out) == 10
    assert found.documents == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_every_form_of_text_is_read(read: Read, tmp_path: Path) -> None:
    documents = [words(k) for k in range(30)]
    for k, document in enumerate(documents):
        (tmp_path / f"{k}.txt").write_text(document)
    (tmp_path / "lines").mkdir()
    lines = tmp_path / "lines" / "lines.jsonl"
    lines.write_text("\n".join(json.dumps({"body": document, "text": 1}) for document in documents))

    class Rows(list):
        column_names = ["text"]  # noqa: RUF012

    expected = read(documents).to_dict()["digest"]
    lines_by_field = read(f"{lines}:body")
    assert lines_by_field.to_dict()["digest"] == expected
    assert lines_by_field.source == f"{lines}:body"
    lines.unlink()
    assert read(tmp_path).to_dict()["digest"] == expected
    assert read(str(tmp_path)).to_dict()["digest"] == expected
    assert read(Rows({"text": document} for document in documents)).to_dict()["digest"] == expected


def test_rows_of_tokens_count_as_documents(read: Read, tmp_path: Path) -> None:
    ids = torch.randint(0, 258, (40, 12), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "ids.npz", input_ids=ids.numpy())
    for source in (ids, {"input_ids": ids}, tmp_path / "ids.npz", list(ids), load_data({"input_ids": ids})):
        found = read(source)
        assert (len(found.train), len(found.held_out), found.documents) == (38, 2, [0, 1])
        rows = sorted(sample["input_ids"].tolist() for sample in (*found.train, *found.held_out))
        assert rows == sorted(ids.tolist())


def test_rows_keep_their_labels_and_lose_their_padding(read: Read) -> None:
    ids = [torch.arange(1, 4 + k) for k in range(6)]
    labels = [x + 100 for x in ids]
    padded = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
    }
    found = read(padded)
    for sample in (*found.train, *found.held_out):
        assert set(sample) == {"input_ids", "labels"}
        assert sample["labels"].tolist() == [x + 100 for x in sample["input_ids"].tolist()]
    longest = max(found.train, key=lambda sample: len(sample["input_ids"]))
    shortest = min(found.train, key=lambda sample: len(sample["input_ids"]))
    batch = collate([longest, shortest], CPU)
    n = len(shortest["input_ids"])
    assert batch["labels"][1, n:].eq(-100).all()
    assert batch["attention_mask"].sum(1).tolist() == [len(longest["input_ids"]), n]


def test_a_batch_of_images_is_stacked() -> None:
    samples = [{"pixel_values": torch.randn(3, 4, 4), "labels": torch.tensor(k)} for k in range(2)]
    batch = collate(samples, CPU)
    assert {name: tuple(x.shape) for name, x in batch.items()} == {"pixel_values": (2, 3, 4, 4), "labels": (2,)}


def test_the_demo_text_is_what_the_bundled_model_was_trained_on(
    read: Read, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [words(k) for k in range(3)]
    monkeypatch.setattr(text, "demo_documents", lambda: iter(held))
    monkeypatch.setattr(module, "_library", lambda: iter([words(k) for k in range(2, 30)]))
    found = read("demo")
    assert "".join(texts(found.held_out, tokenizer)) == "".join(document[:96] for document in held)
    assert len(found.train) == 6 * 27  # a document that is held out under another name is not trained on
    known = set(filter(None, (piece for document in held for piece in [document[:16]])))
    assert not known & set(texts(found.train, tokenizer))


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "no text to train on; name a file or a folder with --text, or give `--text demo`"),
        ("no/such.txt", "no file or folder"),
        ([""], "list holds no text"),
        (["abc"], "list is too short: 3 tokens; expected at least 8"),
        ([words(0, 12)], "list is too short: 12 tokens; expected at least two sequences of 16"),
        ([words(0, 20)], "list is too short: 16 tokens; expected at least two sequences of 16"),
        ([words(0, 10), words(1, 10)], "list is too short: 20 tokens; expected at least two sequences of 16"),
        ([torch.arange(9)], "list is too short: 9 tokens"),
        (3, "got data of type int"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(source: Any, message: str, read: Read) -> None:
    assert message in refused(read, source)


def test_text_needs_a_tokenizer(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="got text, but the model has no tokenizer"):
        read_corpus(["text"] * 9, tiny_model, None, length=16, tokens=99)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="the model's embedding has 40 rows"):
        read_corpus([words(0, 900)], llama(), tokenizer, length=16, tokens=99)


def test_models_that_do_not_say_what_they_read(tokenizer: PreTrainedTokenizerFast) -> None:
    found = read_corpus({"x": torch.randn(30, 3)}, nn.Linear(3, 2), None, length=16, tokens=99)
    assert (len(found.train), len(found.held_out)) == (28, 2)
    assert found.to_dict()["tokens"] == 28
    assert read_corpus(token_ids(40), llama(), None, length=16, tokens=9999).to_dict()["sequences"] == 38
