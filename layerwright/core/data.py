"""What a user calls data, as batches that a model takes.

Everything is read once and held, so that each pass of a survey sees the same batches also where a loader shuffles.
Under a budget of tokens, sequences are taken evenly from a stretch of the source eight times as long, so that they do
not all come from its first page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.sources import Batch, Reader, Row, Source, evenly

MAX_TOKENS = 16_384
BATCH_TOKENS = 2048
_SPREAD = 8
_PIXEL_TOKENS = 256  # what an image counts for in the budget: a vision transformer sees about as many patches


@dataclass(frozen=True)
class Data:
    """Batches of model inputs and where they come from.

    Attributes:
        batches: model inputs by name, first axis the sequences (samples, images). Shorter sequences are padded on the
            right, with an `attention_mask`. `labels`, where the source has them, are targets and not an input.
        source: what the user named.
        kind: `text`, `tokens`, `images` or `arrays`.
        sequences: number of sequences.
        tokens: number of tokens that are not padding; where the input has no token axis, number of samples.
        length: tokens of the longest sequence.
        prefix: leading positions of every sequence that statistics leave out: special tokens in front of text, whose
            states are unlike all others.
        digest: SHA-256 of what the model sees, independent of how it is split into batches.
        notes: what a reader of the numbers should know.
    """

    batches: list[Batch]
    source: str
    kind: str
    sequences: int
    tokens: int
    length: int
    prefix: int
    digest: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, str | int]:
        """The `data` section of a survey."""
        names = ("source", "kind", "sequences", "tokens", "length", "prefix", "digest")
        return {name: getattr(self, name) for name in names}


def load_data(
    source: Any = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    *,
    length: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    prefix: int | None = None,
) -> Data:
    """Turn what a user has into batches for a model.

    Args:
        source: a text file or folder of text files; a `.jsonl` file (`data.jsonl:FIELD` where the field is not `text`;
            of lines with `prompt` and `response` only the response has a loss); an `.npz` file of arrays named as
            model inputs; a folder of images; `demo` or None (held-out files of the standard library); a list of
            strings; a tensor, a dict of tensors, a list of either, or a list of 1-d tensors of token ids; a
            DataLoader; a Hugging Face dataset with a column `text` or `input_ids`.
        model: the model that will read it: names the inputs, limits the length, and is checked against token ids.
        tokenizer: needed for text.
        length: tokens in a sequence of text; 256 unless the model's own limit is lower.
        max_tokens: budget, 16,384 unless given; an image counts as 256.
        batch_size: sequences in a batch; about 2,048 tokens unless given. Ready-made batches are kept as they are.
        prefix: leading positions to leave out of statistics; read off the tokenizer unless given.

    Raises:
        UserError: the source is missing, empty, unreadable, too short, or does not fit the model.

    Example:
        >>> data = load_data({"x": torch.zeros(5, 3)}, batch_size=2)
        >>> [tuple(batch["x"].shape) for batch in data.batches], data.sequences
        ([(2, 3), (2, 3), (1, 3)], 5)
    """
    for option, value in {"length": length, "max_tokens": max_tokens, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"got {option} {value}; expected at least 1")
    if isinstance(source, Data):
        return source
    budget = max_tokens or MAX_TOKENS
    reader = Reader(model, tokenizer, length, _SPREAD * budget, max(1, budget // _PIXEL_TOKENS))
    found = reader.read(source)
    batches, inferred, notes = _batches(found, budget, batch_size, _pad_id(tokenizer))
    _check_ids(batches, model)
    return Data(
        batches=[_as_dtype(batch, model) for batch in batches],
        source=found.name,
        kind="tokens" if found.kind == "arrays" and "input_ids" in batches[0] else found.kind,
        sequences=sum(map(_rows, batches)),
        tokens=sum(map(_tokens, batches)),
        length=max(map(_row_tokens, batches)),
        prefix=inferred if prefix is None else prefix,
        digest=_digest(batches),
        notes=found.notes + notes,
    )


def _batches(source: Source, budget: int, size: int | None, pad: int) -> tuple[list[Batch], int, tuple[str, ...]]:
    """The source within its budget as batches, its prefix, and a note where something was left out."""
    if source.rows is not None:
        rows, notes = _choose(source.rows, budget)
        return _pad(rows, size, pad), rows[0].prefix, notes
    if source.arrays is not None:
        batches, notes = _split(source.arrays, budget, size)
        return batches, 0, notes
    return _until(source.batches or iter(()), budget), 0, ()


def _choose(rows: Iterator[Row], budget: int) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of token ids within the budget, taken evenly from a stretch several times as long."""
    pool: list[Row] = []
    used = 0
    for row in rows:
        pool.append(row)
        used += len(row.ids)
        if used >= _SPREAD * budget:
            break
    if not pool:
        raise UserError("the data is empty; expected at least one sequence")
    return evenly(pool, max(1, budget * len(pool) // used), "sequences")


def _pad(rows: list[Row], batch_size: int | None, pad: int) -> list[Batch]:
    size = batch_size or max(1, BATCH_TOKENS // max(len(row.ids) for row in rows))
    batches = []
    for part in (rows[k : k + size] for k in range(0, len(rows), size)):
        width = max(len(row.ids) for row in part)

        def filled(given: list[list[int]], filling: int, width: int = width) -> Tensor:
            return torch.tensor([ids + [filling] * (width - len(ids)) for ids in given])

        batch = {"input_ids": filled([row.ids for row in part], pad)}
        if any(len(row.ids) < width for row in part):
            batch["attention_mask"] = filled([[1] * len(row.ids) for row in part], 0)
        labels = [row.labels for row in part if row.labels is not None]
        if labels:
            batch["labels"] = filled(labels, -100)
        batches.append(batch)
    return batches


def _split(arrays: Batch, budget: int, batch_size: int | None) -> tuple[list[Batch], tuple[str, ...]]:
    sizes = {name: len(x) for name, x in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"arrays differ in their number of samples: {sizes or 'no array'}; expected one number")
    tokens = _row_tokens(arrays)
    chosen, notes = evenly(range(_rows(arrays)), max(1, budget // tokens), "samples")
    size = batch_size or max(1, BATCH_TOKENS // tokens)
    parts = [chosen[k : k + size] for k in range(0, len(chosen), size)]
    return [{name: x[part] for name, x in arrays.items()} for part in parts], notes


def _until(batches: Iterator[Batch], budget: int) -> list[Batch]:
    """Ready-made batches until the budget is reached; the first one always."""
    kept: list[Batch] = []
    used = 0
    for batch in batches:
        kept.append(batch)
        used += _rows(batch) * _row_tokens(batch)
        if used >= budget:
            break
    if not kept:
        raise UserError("the data is empty; expected at least one batch")
    return kept


def _main(batch: Batch) -> Tensor:
    return batch.get("input_ids", next(x for name, x in batch.items() if name != "labels" or len(batch) == 1))


def _rows(batch: Batch) -> int:
    return len(_main(batch))


def _row_tokens(batch: Batch) -> int:
    """Tokens in one row: the second axis of token ids and of `[sample, token, width]`, 256 for images, else 1."""
    x = _main(batch)
    if x.ndim > 3:
        return _PIXEL_TOKENS
    return x.shape[1] if x.ndim == 3 or (x.ndim == 2 and not x.is_floating_point()) else 1


def _tokens(batch: Batch) -> int:
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return int(mask.sum())
    return _rows(batch) * (_row_tokens(batch) if _main(batch).ndim <= 3 else 1)


def _digest(batches: list[Batch]) -> str:
    """SHA-256 over the rows, padding removed."""
    sha = hashlib.sha256()
    for batch in batches:
        mask = batch.get("attention_mask")
        for row in range(_rows(batch)):
            for name in sorted(batch.keys() - {"attention_mask"}):
                x = batch[name][row].detach().cpu()
                if mask is not None and batch[name].shape == mask.shape:
                    x = x[mask[row].bool().cpu()]
                sha.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
                sha.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _pad_id(tokenizer: Any) -> int:
    names = ("pad_token_id", "eos_token_id")
    return next((i for name in names if isinstance(i := getattr(tokenizer, name, None), int)), 0)


def _check_ids(batches: list[Batch], model: nn.Module | None) -> None:
    """A token id beyond the embedding is an IndexError on a CPU and silent garbage, or worse, on an accelerator."""
    try:
        rows = len(model.get_input_embeddings().weight)  # type: ignore[union-attr, operator]
    except (AttributeError, NotImplementedError, TypeError):
        return  # not a model of token ids, or not one that says where they go
    for ids in (batch["input_ids"] for batch in batches if "input_ids" in batch):
        low, high = int(ids.min()), int(ids.max())
        if high >= rows or low < 0:
            raise UserError(
                f"got token id {high if high >= rows else low}, but the model's embedding has {rows} rows; "
                "the tokenizer and the model do not belong together"
            )


def _as_dtype(batch: Batch, model: nn.Module | None) -> Batch:
    """Floating inputs in the dtype of the model's weights; float32 where there is no model to say."""
    weights = () if model is None else model.parameters()
    dtype = next((p.dtype for p in weights if p.is_floating_point()), torch.float32)
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}
