"""Prompts with responses: which tokens have a loss, told by the characters they cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from zoo import llama

import layerwright as lw
from layerwright.core.data import load_data
from layerwright.core.errors import UserError
from layerwright.core.exchanges import Exchange, exchange_rows


def merging() -> PreTrainedTokenizerFast:
    """Bytes, and one token `=>` that may cover the end of a prompt and the start of a response."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: k for k, piece in enumerate(["<s>", *alphabet, "=>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("=", ">")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_only_tokens_of_the_response_have_a_label() -> None:
    tokenizer = byte_tokenizer(front=True)
    (ids, prefix, labels), *rest = exchange_rows([Exchange("two and two is", " four")], tokenizer, 64, "x")
    assert not rest
    assert prefix == 1
    assert tokenizer.decode([label for label in labels if label != -100]) == " four"
    assert [label for label in labels if label != -100] == ids[-5:]
    assert labels[:-5] == [-100] * (len(ids) - 5)


def test_a_token_over_the_boundary_belongs_to_the_response() -> None:
    tokenizer = merging()
    prompt, response = "the answer is =", "> five"
    ((ids, _, labels),) = exchange_rows([Exchange(prompt, response)], tokenizer, 64, "x")
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(alone)] != alone  # cutting after as many tokens as the prompt has alone would be off by one
    merged = tokenizer.convert_tokens_to_ids("=>")
    assert ids[len(alone) - 1] == labels[len(alone) - 1] == merged
    assert labels[len(alone) - 2] == -100


def test_a_long_exchange_is_cut_and_one_without_response_left_out() -> None:
    tokenizer = byte_tokenizer()
    given = [Exchange("short prompt", " and a long response" * 3), Exchange("p" * 40, "gone")]
    rows = list(exchange_rows(given, tokenizer, 20, "x"))
    assert len(rows) == 1
    ids, _, labels = rows[0]
    assert len(ids) == len(labels) == 20
    with pytest.raises(UserError, match="no response begins within 20 tokens"):
        list(exchange_rows(given[1:], tokenizer, 20, "x"))


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="expected a fast one"):
        list(exchange_rows([Exchange("a", "b")], lambda text, **_: {"input_ids": [1]}, 20, "x"))


def test_a_file_becomes_batches_with_labels(tmp_path: Path, tiny_model: nn.Module) -> None:
    path = written(
        tmp_path / "qa.jsonl",
        {"prompt": "two and two is", "response": " four"},
        {"prompt": "what is the square of three? it", "response": " is nine"},
    )
    data = load_data(path, tiny_model, byte_tokenizer())
    (batch,) = data.batches
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["labels"][0] != -100).sum() == 5
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert any("only tokens of responses" in note for note in data.notes)


def test_a_file_with_texts_of_its_own_is_text(tmp_path: Path, tiny_model: nn.Module) -> None:
    path = written(tmp_path / "t.jsonl", {"prompt": "a", "response": "b", "text": "a text of its own, long enough"})
    assert "labels" not in load_data(path, tiny_model, byte_tokenizer()).batches[0]


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "response": 3}, {"prompt": "a", "response": ""}, ["a"], {"prompt": "a"}]
)
def test_lines_that_are_no_exchange(row: Any, tmp_path: Path, tiny_model: nn.Module) -> None:
    path = written(tmp_path / "qa.jsonl", {"prompt": "two and two is", "response": " four"}, row)
    with pytest.raises(UserError, match=r"line 2: expected the texts `prompt` and `response`"):
        load_data(path, tiny_model, byte_tokenizer())


def test_gradients_are_those_of_the_response_alone(tmp_path: Path) -> None:
    model, tokenizer = llama(vocab_size=300), byte_tokenizer()
    path = written(tmp_path / "qa.jsonl", {"prompt": "two and two is", "response": " four"})
    found = lw.survey(model, path, only=["gradient_spectrum"], tokenizer=tokenizer)["gradient_spectrum"]
    ids = torch.tensor([tokenizer("two and two is four")["input_ids"]])
    logits = model.eval()(input_ids=ids, use_cache=False).logits[0, -6:-1]
    nn.functional.cross_entropy(logits, ids[0, -5:]).backward()
    rows = found[(found.block == 1) & (found.quantity == "frobenius_norm")].set_index("matrix")["value"]
    for name, value in rows.items():
        expected = model.model.layers[1].get_parameter(f"{name}.weight").grad.norm()
        assert value == pytest.approx(float(expected), rel=1e-4)


def test_one_label_a_sequence_leaves_the_loss_of_tokens(tiny_model: nn.Module) -> None:
    ids = torch.randint(0, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    plain = lw.survey(tiny_model, {"input_ids": ids}, only=["gradient_spectrum"])
    labelled = lw.survey(tiny_model, {"input_ids": ids, "labels": torch.arange(4) % 2}, only=["gradient_spectrum"])
    assert labelled["gradient_spectrum"].equals(plain["gradient_spectrum"])
