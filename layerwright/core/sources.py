"""Tell apart what a user may call data, and read it: rows of token ids, arrays by name, or ready-made batches."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core import images, text
from layerwright.core.errors import UserError
from layerwright.core.exchanges import exchange_rows, holds_exchanges, read_exchanges
from layerwright.core.quiet import unwrap

LENGTH = 256
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")

_ONLY_RESPONSES = "only tokens of responses have a loss: the data are prompts with responses"

Batch = dict[str, Tensor]


class Row(NamedTuple):
    """Token ids, how many special tokens stand in front, and the label at each token where they are not the ids."""

    ids: list[int]
    prefix: int
    labels: list[int] | None = None


@dataclass(frozen=True)
class Source:
    """What was read, in one of three forms; rows and batches are read when they are asked for."""

    name: str
    kind: str
    rows: Iterator[Row] | None = None
    arrays: Batch | None = None
    batches: Iterator[Batch] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """The model's side of reading: how it tokenizes, how long a sequence may be, what its inputs are called.

    `tokens` is how many tokens will be wanted at most, `samples` how many images: reading stops there.
    """

    model: nn.Module | None
    tokenizer: Any
    length: int | None
    tokens: int
    samples: int

    def read(self, source: Any) -> Source:
        """The source in one of the three forms.

        Raises:
            UserError: it is missing, unreadable, or nothing that a model could take.
        """
        name = type(source).__name__
        if source is None or (isinstance(source, str) and source == "demo"):
            notes = () if source else ("no data was named: the survey read files of Python's standard library",)
            return self._text("demo (held-out files of the standard library)", text.demo_documents(), notes)
        if isinstance(source, (str, Path)) and (answered := self._exchanges(source)) is not None:
            return answered
        if (found := documents(source, self.model, text.bytes_for(self.tokens))) is not None:
            return self._text(*found)
        if isinstance(source, (str, Path)):
            return self._path(source)
        if isinstance(source, (Tensor, np.ndarray)):
            main = self.main_input()
            return Source(name, "arrays", arrays={main: _tensor(main, source)})
        if isinstance(source, Mapping) and not hasattr(source, "column_names"):
            return Source(name, "arrays", arrays={key: _tensor(key, value) for key, value in source.items()})
        columns = _columns(source)
        if "input_ids" in columns:
            return Source(name, "tokens", rows=(Row(list(row["input_ids"]), 0) for row in source))
        if "text" in columns:
            return self._text(name, (row["text"] for row in source))
        if _all(source, lambda x: isinstance(x, str)):
            return self._text(name, source)
        if _all(source, lambda x: isinstance(x, Tensor) and x.ndim == 1 and not x.is_floating_point()):
            return Source(name, "tokens", rows=(Row(x.tolist(), 0) for x in source))
        if isinstance(source, Iterable):
            return Source(name, "arrays", batches=(_batch(x, self.main_input()) for x in source))
        raise UserError(f"got data of type {name}; expected a path, tensors, a DataLoader or a Hugging Face dataset")

    def _text(self, name: str, texts: Iterable[str], notes: tuple[str, ...] = ()) -> Source:
        if self.tokenizer is None:
            raise UserError("got text, but the model has no tokenizer; give token ids: an .npz with an array input_ids")
        rows = (Row(*row) for row in text.sequences(texts, self.tokenizer, self.sequence_length(), name))
        return Source(name, "text", rows=rows, notes=notes)

    def _exchanges(self, source: str | Path) -> Source | None:
        """Prompts with responses, where a file holds them."""
        path, field = _place(source)
        if self.tokenizer is None or field != "text" or path.suffix != ".jsonl" or not path.is_file():
            return None
        if not holds_exchanges(path):
            return None
        found = exchange_rows(read_exchanges(path), self.tokenizer, self.sequence_length(), str(source))
        return Source(str(source), "text", rows=(Row(*row) for row in found), notes=(_ONLY_RESPONSES,))

    def _path(self, source: str | Path) -> Source:
        """A file or a folder of anything but text."""
        path, _ = _place(source)
        if not path.exists():
            raise UserError(f"no file or folder {path}; expected text, .jsonl, .npz, a folder of images, or `demo`")
        return self._images(path) if path.is_dir() else Source(str(source), "arrays", arrays=self._npz(path))

    def _images(self, folder: Path) -> Source:
        files = images.find(folder)
        if not files:
            raise UserError(f"no image in folder {folder}; expected files such as {', '.join(images.SUFFIXES[:3])}")
        chosen, notes = evenly(files, self.samples, "images")
        pixels, note = images.load(chosen, self.model)
        return Source(str(folder), "images", arrays={self.main_input("pixel_values"): pixels}, notes=(*notes, note))

    def _npz(self, path: Path) -> Batch:
        arrays = read_arrays(path)
        known = self._input_names()
        for name in arrays:
            if known and name not in known and name != "labels":
                raise UserError(f"{path} has an array {name!r}, no input of the model; expected {', '.join(known[:6])}")
        return {name: _tensor(name, array) for name, array in arrays.items()}

    def sequence_length(self) -> int:
        """Tokens in a sequence: as asked, else 256 or the model's limit where that is lower.

        Raises:
            UserError: the model cannot take sequences as long as asked.
        """
        config: Any = getattr(self.model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        limits = [n for name in _LIMITS if isinstance(n := getattr(config, name, None), int) and n > 0]
        if self.length is not None and self.length > min(limits, default=self.length):
            raise UserError(f"got sequences of {self.length} tokens; the model takes at most {min(limits)}")
        return self.length or min(LENGTH, getattr(self.tokenizer, "model_max_length", LENGTH), *limits)

    def main_input(self, default: str = "input") -> str:
        """What the model calls its first input."""
        main = getattr(self.model, "main_input_name", None)
        return main if isinstance(main, str) else next(iter(self._input_names()), default)

    def _input_names(self) -> list[str]:
        if self.model is None:
            return []
        parameters = inspect.signature(unwrap(self.model).forward).parameters.values()
        return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def documents(source: Any, model: nn.Module | None, limit: int) -> tuple[str, Iterable[str]] | None:
    """The name and the documents of a source of text; None where it is none, or is not there.

    Args:
        source: as a user gives it.
        model: of a folder that may hold images as well, it decides.
        limit: how many bytes of each text file to read.

    Raises:
        UserError: it is a data set of several splits, or one without a column that is known.
    """
    if isinstance(source, (str, Path)):
        path, field = _place(source)
        arrays = path.suffix == ".npz" and path.is_file()
        if not path.exists() or arrays or (path.is_dir() and _reads_images(model, path)):
            return None
        return str(source), text.documents(path, field=field, limit=limit)
    name, columns = type(source).__name__, _columns(source)
    if "text" in columns and "input_ids" not in columns:
        return name, (row["text"] for row in source)
    return (name, source) if _all(source, lambda x: isinstance(x, str)) else None


def _place(source: str | Path) -> tuple[Path, str]:
    """A path, and the field of its lines: `FILE.jsonl:FIELD` names another than `text`."""
    path = Path(source).expanduser()
    if path.exists() or ".jsonl:" not in str(source):
        return path, "text"
    file, _, field = str(source).rpartition(":")
    return Path(file).expanduser(), field


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name; Python objects in it are never read.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise UserError(f"{path} holds one array without a name; expected named ones, as numpy.savez writes them")
        with found as archive:
            return {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        objects = "Object arrays" in str(error) or "pickle" in str(error)
        why = "it holds Python objects, and reading those can run code" if objects else str(error)
        raise UserError(f"{path} cannot be read: {why}; expected numeric arrays written by numpy.savez") from None


def _reads_images(model: nn.Module | None, folder: Path) -> bool:
    """The model's main input decides; a model that does not say what it reads is given what the folder holds."""
    known = {"pixel_values": True, "input_ids": False}
    main = getattr(model, "main_input_name", "")
    return known[main] if main in known else bool(images.find(folder))


def evenly(items: Sequence[Any], n: int, what: str) -> tuple[list[Any], tuple[str, ...]]:
    """`n` of the items at even distances, in order, and a note where some are left out.

    Example:
        >>> evenly("abcdef", 3, "letters")
        (['a', 'c', 'e'], ('read 3 of at least 6 letters, the budget of max_tokens',))
    """
    if len(items) <= n:
        return list(items), ()
    note = f"read {n:,} of at least {len(items):,} {what}, the budget of max_tokens"
    return [items[k * len(items) // n] for k in range(n)], (note,)


def _all(source: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(source, Sequence) and len(source) > 0 and all(map(test, source))


def _columns(source: Any) -> list[str]:
    """The columns of a Hugging Face dataset, none for anything else."""
    columns = getattr(source, "column_names", None)
    if columns is None:
        return []
    if isinstance(columns, Mapping):
        raise UserError(f"got a data set of several splits ({', '.join(columns)}); pass one of them")
    if not {"text", "input_ids"} & set(columns):
        raise UserError(f"the data set has columns {', '.join(columns)}; expected `text` or `input_ids`: rename one")
    return list(columns)


def _batch(x: Any, main: str) -> Batch:
    """One ready-made batch: a mapping of inputs, the main input alone, or `(input, labels)`."""
    if isinstance(x, Mapping):
        return {key: _tensor(key, value) for key, value in x.items()}
    if isinstance(x, (tuple, list)) and 1 <= len(x) <= 2:
        return {key: _tensor(key, value) for key, value in zip((main, "labels"), x, strict=False)}
    return {main: _tensor(main, x)}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"input {name!r} holds {found}; expected a tensor of numbers, its first axis the samples")
    if value.ndim == 0 or value.shape[0] == 0:
        raise UserError(f"input {name!r} has shape {tuple(value.shape)}; expected at least one sample, first axis")
    return value if value.is_floating_point() or value.dtype is torch.bool else value.long()
