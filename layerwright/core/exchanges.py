"""Prompts with responses, of which only the response has a loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from layerwright.core.errors import UserError
from layerwright.core.text import MIN_TOKENS, special_tokens

Ids = list[int]
_FIELDS = ("prompt", "response")


class Exchange(NamedTuple):
    """A prompt and what was answered."""

    prompt: str
    response: str


def holds_exchanges(path: Path) -> bool:
    """Whether the first line of a `.jsonl` file has a prompt and a response, and no text of its own."""
    with path.open("rb") as file:
        line = next((raw for raw in file if raw.strip()), b"")
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and set(_FIELDS) <= row.keys() and "text" not in row


def read_exchanges(path: Path) -> Iterator[Exchange]:
    """The exchanges of a `.jsonl` file.

    Raises:
        UserError: a line is no object with both texts, or the response is empty.
    """
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from None
        texts = [row.get(field) if isinstance(row, dict) else None for field in _FIELDS]
        if not all(isinstance(text, str) for text in texts) or not texts[1]:
            raise UserError(f"{path} line {number}: expected the texts `prompt` and `response`, the response not empty")
        yield Exchange(*(str(text) for text in texts))


def exchange_rows(
    exchanges: Iterable[Exchange], tokenizer: Callable[..., Any], length: int, name: str
) -> Iterator[tuple[Ids, int, Ids]]:
    """Token ids of each exchange, its special tokens in front, and its labels: -100 but for tokens of the response.

    Both texts are tokenized as one, and a token belongs to the response if any of its characters do: a prompt that is
    tokenized alone may end in other tokens than it does here. An exchange that is longer than a sequence is cut at its
    end, and left out where no token of its response is left.

    Args:
        exchanges: prompts and responses.
        tokenizer: a fast Hugging Face tokenizer, which knows the characters of each token.
        length: tokens in a sequence, special tokens included.
        name: what the exchanges are called in an error.

    Raises:
        UserError: the tokenizer gives no offsets, or no exchange is left.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("got responses, and a tokenizer that does not say where its tokens lie; expected a fast one")
    front, back = special_tokens(tokenizer)
    room, seen, kept = length - len(front) - len(back), 0, 0
    for prompt, response in exchanges:
        seen += 1
        found = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: Ids = list(found["input_ids"])[:room]
        ends = [end for _, end in found["offset_mapping"]][:room]
        labels = [token if end > len(prompt) else -100 for token, end in zip(ids, ends)]
        if len(ids) < MIN_TOKENS or all(label == -100 for label in labels):
            continue
        kept += 1
        nothing = [-100] * len(front), [-100] * len(back)
        yield front + ids + back, len(front), nothing[0] + labels + nothing[1]
    if not kept:
        raise UserError(
            f"{name} has {seen} prompts with responses, of which no response begins within {length} tokens; expected "
            "shorter prompts, or a longer --length"
        )
