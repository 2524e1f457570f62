"""Text for training: documents, of which some are held out, as sequences of tokens.

Documents are taken in the order of their hashes, which is as good as random and the same whatever the seed: the first
are held out, the following are trained on. Exact copies of a document count once, so that none is on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from layerwright.core import text
from layerwright.core.data import MAX_TOKENS, load_data
from layerwright.core.errors import UserError
from layerwright.core.sources import Batch, documents, evenly
from layerwright.demo import corpus as library
from layerwright.trainers.objective import IGNORED, token_ids

HELD_OUT = 0.05  # of the documents
_MOST_HELD_OUT = 200
_TAIL = 0.1  # of the sequences, where there is only one document
# Documents are chosen from a stretch of the source that is much longer than what is needed, so that they do not all
# come from its first page: so many times as long, and at least so many characters.
_SPREAD, _LEAST = 8, 2**26

Sample = Mapping[str, Tensor]  # model inputs of one sequence, without a batch axis
Item = TypeVar("Item")


class Corpus(NamedTuple):
    """Sequences to train on, and sequences of other documents to measure on.

    Attributes:
        train: sequences of the training documents.
        held_out: sequences of the held-out documents.
        documents: which document each of `held_out` is from, counted from 0.
        source: what the user named.
        notes: what a reader of the losses should know.
    """

    train: list[Sample]
    held_out: list[Sample]
    documents: list[int]
    source: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Where the text came from and how much there is of it; `digest` is SHA-256 of all sequences."""
        sha = hashlib.sha256()
        for sample in (*self.train, *self.held_out):
            sha.update(_digest(sample))
        return {
            "source": self.source,
            "sequences": len(self.train),
            "tokens": sum(map(_tokens, self.train)),
            "held_out_documents": len(set(self.documents)),
            "held_out_sequences": len(self.held_out),
            "held_out_tokens": sum(map(_tokens, self.held_out)),
            "digest": sha.hexdigest(),
        }


def read_corpus(
    source: Any,
    model: nn.Module,
    tokenizer: Any,
    *,
    length: int,
    tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Read what a run needs.

    Args:
        source: what `load_data` takes; `demo` is the text that the bundled model was trained on, with its held-out
            files held out. Rows of anything but text count as documents.
        model: that will be trained.
        tokenizer: needed for text.
        length: tokens in a sequence.
        tokens: how many the run trains on; no more text is tokenized. Sequences of less text come again and again.
        progress: called with the tokens read and the tokens wanted.

    Raises:
        UserError: there is no text, it is shorter than one sequence to train on and one to hold out, or it does not fit
            the model.
    """
    if source is None:
        raise UserError("no text to train on; name a file or a folder with --text, or give `--text demo`")
    documents = _documents(source, model, tokenizer, length, tokens)
    held = [list(group) for group in documents.held_out]
    train = list(_until(documents.train, tokens, progress))
    notes = documents.notes
    if not train:
        # One document, or hardly more: its end is held out.
        pool = list(chain.from_iterable(held))
        cut = len(pool) - max(1, round(_TAIL * len(pool)))
        train, held = pool[:cut], [[sample] for sample in pool[cut:]]
        notes += (f"the text is one document: its last {len(held)} sequences are held out, each counts as a document",)
    if not train or (documents.text and sum(map(_tokens, train)) < length):
        found = sum(map(_tokens, chain(train, *held)))
        raise UserError(
            f"{documents.name} is too short: {found} tokens; expected at least two sequences of {length}, one to train "
            "on and one to hold out; give more text, or a smaller length"
        )
    flat = [(number, sample) for number, group in enumerate(held) for sample in group]
    kept, _ = evenly(flat, max(1, MAX_TOKENS // max(_tokens(sample) for _, sample in flat)), "sequences")
    renumbered = {number: k for k, number in enumerate(dict.fromkeys(number for number, _ in kept))}
    _check_ids(chain(train, *held), model)
    return Corpus(train, [s for _, s in kept], [renumbered[n] for n, _ in kept], documents.name, notes)


def collate(samples: Sequence[Sample], device: torch.device) -> Batch:
    """A batch: shorter sequences are padded on the right, with an `attention_mask`.

    Example:
        >>> short, long = {"input_ids": torch.tensor([5])}, {"input_ids": torch.tensor([6, 7])}
        >>> {k: x.tolist() for k, x in collate([short, long], torch.device("cpu")).items()}
        {'input_ids': [[5, 0], [6, 7]], 'attention_mask': [[1, 0], [1, 1]]}
    """
    lengths = [_tokens(sample) for sample in samples]
    width = max(lengths)
    batch = {
        name: torch.stack([_widened(s[name], n, width, IGNORED * (name == "labels")) for s, n in zip(samples, lengths)])
        for name in samples[0]
    }
    if min(lengths) < width:
        batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {name: x.to(device) for name, x in batch.items()}


def _widened(x: Tensor, tokens: int, width: int, fill: int) -> Tensor:
    x = x.long() if x.dtype == torch.int32 else x
    if x.ndim != 1 or len(x) != tokens or x.is_floating_point():
        return x
    return nn.functional.pad(x, (0, width - tokens), value=fill)


def _tokens(sample: Sample) -> int:
    ids = token_ids({name: x[None] for name, x in sample.items()})
    return 1 if ids is None else ids.shape[1]


def _digest(sample: Sample) -> bytes:
    sha = hashlib.sha256()
    for name in sorted(sample):
        x = sample[name].cpu().contiguous()
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}".encode() + x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


# Documents


class _Documents(NamedTuple):
    """Documents as groups of sequences; the held-out ones must be read first."""

    name: str
    held_out: Iterable[Iterable[Sample]]
    train: Iterable[Iterable[Sample]]
    notes: tuple[str, ...]
    text: bool = True


def _documents(source: Any, model: nn.Module, tokenizer: Any, length: int, tokens: int) -> _Documents:
    limit = max(_LEAST, _SPREAD * text.bytes_for(tokens))
    demo = isinstance(source, str) and source == "demo"
    found = ("demo (source of the standard library)", _library()) if demo else documents(source, model, limit)
    if found is None:
        return _rows(source, model, tokenizer, length, tokens)
    text.check_tokenizer(tokenizer)
    name, texts = found
    read, notes = _first(texts, limit)
    chosen = _in_hash_order(read, _of_text)
    notes += _copies(len(read) - len(chosen))
    groups = _sequences(chosen, tokenizer, length, name)
    if demo:
        held_out = list(text.demo_documents())
        new = (document for document in chosen if document not in held_out)
        groups = _sequences(new, tokenizer, length, name)
        return _Documents(name, _sequences(held_out, tokenizer, length, name), groups, notes)
    return _Documents(name, islice(groups, _held_out(len(chosen))), groups, notes)


def _library() -> Iterator[str]:
    """What the bundled model was trained on."""
    return filter(None, map(library.read, chain(*library.split()[:2])))


def _first(texts: Iterable[str], limit: int) -> tuple[list[str], tuple[str, ...]]:
    """Documents from the beginning of a source, enough to choose from."""
    read: list[str] = []
    size = 0
    for document in texts:
        if size >= limit:
            return read, (f"documents were chosen from the first {len(read):,}, of {size:,} characters",)
        read.append(document)
        size += len(document)
    return read, ()


def _sequences(texts: Iterable[str], tokenizer: Any, length: int, name: str) -> Iterator[list[Sample]]:
    """The sequences of each document that has any."""
    number = 0

    def counted() -> Iterator[str]:
        nonlocal number
        for document in texts:
            number += 1
            yield document

    # A document is asked for when the sequences of the one before are all given, so that `number` is that of the row.
    rows = ((number, ids) for ids, _ in text.sequences(counted(), tokenizer, length, name))
    for _, group in groupby(rows, key=lambda row: row[0]):
        yield [{"input_ids": torch.tensor(ids, dtype=torch.int32)} for _, ids in group]


def _rows(source: Any, model: nn.Module, tokenizer: Any, length: int, tokens: int) -> _Documents:
    data = load_data(source, model, tokenizer, length=length, max_tokens=tokens + MAX_TOKENS)
    samples = [sample for batch in data.batches for sample in _unpadded(batch)]
    chosen = _in_hash_order(samples, _digest)
    groups = ([sample] for sample in chosen)
    notes = data.notes + _copies(len(samples) - len(chosen))
    return _Documents(data.source, islice(groups, _held_out(len(chosen))), groups, notes, text=False)


def _unpadded(batch: Batch) -> Iterator[Sample]:
    mask = batch.get("attention_mask")
    for row in range(len(next(iter(batch.values())))):
        if mask is None:
            yield {name: x[row] for name, x in batch.items()}
            continue
        real = mask[row].bool()
        yield {
            name: x[row][real] if x.shape[:2] == mask.shape else x[row]
            for name, x in batch.items()
            if name != "attention_mask"
        }


def _in_hash_order(items: Iterable[Item], digest: Callable[[Item], bytes]) -> list[Item]:
    by_digest = {digest(item): item for item in items}
    return [by_digest[key] for key in sorted(by_digest)]


def _copies(number: int) -> tuple[str, ...]:
    return (f"documents that are exact copies of others and were left out: {number:,}",) if number else ()


def _of_text(document: str) -> bytes:
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()


def _held_out(documents: int) -> int:
    return min(_MOST_HELD_OUT, max(1, round(HELD_OUT * documents)))


def _until(groups: Iterable[Iterable[Sample]], tokens: int, progress: Callable[[int, int], None]) -> Iterator[Sample]:
    """Sequences of as many documents as are needed."""
    read = 0
    for group in groups:
        for sample in group:
            read += _tokens(sample)
            yield sample
        progress(min(read, tokens), tokens)
        if read >= tokens:
            return


def _check_ids(samples: Iterable[Sample], model: nn.Module) -> None:
    """Hold the largest token id against the model's embedding, which `load_data` does."""
    ids = [sample["input_ids"] for sample in samples if "input_ids" in sample]
    if ids:
        load_data([max(ids, key=lambda x: int(x.max())).long()], model)
