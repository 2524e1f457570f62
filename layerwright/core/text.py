"""Documents of text, and the sequences of token ids cut from them.

A document is one text file, one line of a `.jsonl` file, one row of a data set or one string. It is tokenized whole and
cut into pieces of one length; a sequence never holds tokens of two documents. What is left over at a document's end is
dropped, unless the document is shorter than one sequence: then it is a shorter sequence.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from layerwright.core.errors import UserError
from layerwright.demo import corpus

MIN_TOKENS = 8  # fewer tokens than this say more about the start of a text than about the model
_BYTES_PER_TOKEN = 16  # generous: reading stops where no sequence that is wanted can come from any more
_SUFFIXES = (
    "", ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".log", ".py", ".pyi", ".c", ".h", ".cc", ".cpp",
    ".hpp", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".jl", ".lean", ".toml", ".yaml", ".yml",
)  # fmt: skip

Ids = list[int]


def documents(path: Path, *, field: str = "text", limit: int | None = None) -> Iterator[str]:
    """The texts of a file or a folder, in the order of their names.

    Args:
        path: a text file, a `.jsonl` file, or a folder that is searched for both.
        field: which field of a `.jsonl` line holds its text.
        limit: how many bytes of each text file to read.

    Raises:
        UserError: nothing readable is there, a file is not UTF-8, or a line is not a JSON object with that field.
    """
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_readable(path, p)]
        if not files:
            raise UserError(f"no text in folder {path}; expected files such as .txt, .md, .py or .jsonl")
        for file in files:
            yield from documents(file, field=field, limit=limit)
    elif path.suffix == ".jsonl":
        yield from _lines(path, field)
    elif path.suffix.lower() in _SUFFIXES:
        with path.open("rb") as stream:
            raw = stream.read(limit)
        yield _decode(path, raw, whole=limit is None or len(raw) < limit)
    else:
        raise UserError(
            f"got {path} with the unknown suffix {path.suffix!r}; expected text (.txt, .md, .py ...), .jsonl, .npz, "
            "or a folder of text or images"
        )


def demo_documents() -> Iterator[str]:
    """Files of the standard library that the bundled model never saw."""
    held_out = Path(corpus.__file__).parent / "model" / "heldout.json"
    paths = map(Path, json.loads(held_out.read_text())) if held_out.exists() else corpus.split()[2]
    yield from filter(None, map(corpus.read, paths))


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse text where the model has no tokenizer.

    Raises:
        UserError: there is none.
    """
    if tokenizer is None:
        raise UserError("got text, but the model has no tokenizer; give token ids: an .npz with an array input_ids")


def sequences(texts: Iterable[str], tokenizer: Callable[..., Any], length: int, name: str) -> Iterator[tuple[Ids, int]]:
    """Sequences of token ids, each with the number of special tokens that the tokenizer puts in front of it.

    Special tokens at the front and the end (`<s>`, `[CLS]` and `[SEP]`) go around every sequence, not every document,
    so that all sequences are what the model expects. Documents of fewer than 8 tokens are left out.

    Args:
        texts: the documents.
        tokenizer: a Hugging Face tokenizer.
        length: tokens in a sequence, special tokens included.
        name: what the texts are called in an error.

    Raises:
        UserError: there is no text, or no document of at least 8 tokens.
    """
    front, back = special_tokens(tokenizer)
    room = length - len(front) - len(back)
    if room < MIN_TOKENS:
        raise UserError(f"got sequences of {length} tokens; expected at least {MIN_TOKENS + len(front) + len(back)}")
    longest, found = -1, False
    for text in texts:
        ids = _encode(tokenizer, text, special=False) if text.strip() else []
        longest = max(longest, len(ids))
        if len(ids) >= MIN_TOKENS:
            found = True
            yield from ((front + piece + back, len(front)) for piece in cut(ids, room))
    if longest <= 0:
        raise UserError(f"{name} holds no text; expected at least {MIN_TOKENS} tokens")
    if not found:
        raise UserError(f"{name} is too short: {longest} tokens; expected at least {MIN_TOKENS} in one document")


def cut(ids: Ids, length: int) -> list[Ids]:
    """Pieces of one length; what is left over is dropped unless it is all there is.

    Example:
        >>> cut([1, 2, 3, 4, 5], 2)
        [[1, 2], [3, 4]]
        >>> cut([1, 2, 3], 5)
        [[1, 2, 3]]
    """
    if len(ids) <= length:
        return [ids]
    return [ids[k : k + length] for k in range(0, len(ids) - length + 1, length)]


def bytes_for(tokens: int) -> int:
    """How much of a text file is enough for that many tokens."""
    return _BYTES_PER_TOKEN * tokens


def _is_readable(folder: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and (file.suffix == ".jsonl" or file.suffix.lower() in _SUFFIXES)


def _lines(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(path, raw, before=file.tell() - len(raw)).strip()
            if line:
                yield _field(path, number, line, field)


def _field(path: Path, number: int, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number}: got a {type(row).__name__}; expected an object with a field {field!r}")
    if field not in row:
        seen = ", ".join(map(repr, row)) or "none"
        raise UserError(f"{path} line {number} has no field {field!r}, only {seen}; name the field as {path}:FIELD")
    if not isinstance(row[field], str):
        raise UserError(f"{path} line {number}: field {field!r} holds a {type(row[field]).__name__}; expected text")
    return row[field]


def _decode(path: Path, raw: bytes, *, whole: bool = True, before: int = 0) -> str:
    """Text of bytes; where only a part was read, a character cut at its end is left out."""
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw, final=whole)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {before + error.start}; "
            "convert it, for example with `iconv -t utf-8`"
        ) from None


def special_tokens(tokenizer: Callable[..., Any]) -> tuple[Ids, Ids]:
    """What the tokenizer puts in front of a text and behind it."""
    plain, full = (_encode(tokenizer, "a", special=special) for special in (False, True))
    for k in range(len(full) - len(plain) + 1):
        if full[k : k + len(plain)] == plain:
            return full[:k], full[k + len(plain) :]
    return [], []


def _encode(tokenizer: Callable[..., Any], text: str, *, special: bool) -> Ids:
    # verbose=False: a document longer than the model's limit is cut afterwards, so that the warning would mislead.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
