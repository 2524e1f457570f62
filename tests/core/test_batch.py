"""Which tokens count, which are drawn, and what each should say, with padding on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from zoo import WIDTH, ZOO, llama, t5, token_ids, vectors

from layerwright.core.batch import Batch, generator_for
from layerwright.core.stack import Stack

LENGTHS = (12, 7, 3)


def ragged(side: str) -> dict[str, Tensor]:
    ids, mask = token_ids(), torch.zeros(3, 12, dtype=torch.long)
    for row, n in enumerate(LENGTHS):
        mask[row, slice(0, n) if side == "right" else slice(12 - n, None)] = 1
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def settled(inputs, prefix: int = 0, sample: int = 4, tokens: int = 12, **more) -> Batch:
    batch = Batch(inputs, 0, prefix, sample, 0, **more)
    state = torch.zeros(3, tokens, WIDTH)
    batch.settle(state, state)
    return batch


@pytest.mark.parametrize("side", ["right", "left"])
def test_masks(side: str) -> None:
    inputs = ragged(side)
    batch = settled(inputs, prefix=2)
    assert torch.equal(batch.real, inputs["attention_mask"].bool())
    assert batch.mask.sum(1).tolist() == [10, 5, 1]  # two fewer each
    starts = [0, 0, 0] if side == "right" else [0, 5, 9]
    for row, start in enumerate(starts):
        assert not batch.mask[row, start : start + 2].any()
    assert batch.last.tolist() == ([11, 6, 2] if side == "right" else [11, 11, 11])


def test_without_a_mask_every_token_counts() -> None:
    batch = settled({"input_ids": token_ids()})
    assert batch.mask.all()
    assert batch.last.tolist() == [11, 11, 11]


def test_virtual_tokens_in_front_do_not_count() -> None:
    batch = settled({"input_ids": token_ids(), "attention_mask": torch.ones(3, 12, dtype=torch.long)}, tokens=15)
    assert not batch.mask[:, :3].any()
    assert batch.mask[:, 3:].all()


def long(side: str) -> dict[str, Tensor]:
    """Sequences of 100, 40 and 10 tokens."""
    mask = torch.stack([torch.arange(100) < n for n in (100, 40, 10)]).long()
    return {"input_ids": token_ids(3, 100), "attention_mask": mask if side == "right" else mask.flip(1)}


@pytest.mark.parametrize("side", ["right", "left"])
def test_samples_are_real_tokens_drawn_once(side: str) -> None:
    batch = settled(long(side), prefix=1, sample=5, tokens=100)
    for row, n in enumerate((99, 39, 9)):
        drawn = batch.sampled[row][batch.sampled_mask[row]].tolist()
        assert len(drawn) == len(set(drawn)) == min(5, n)
        assert all(batch.mask[row, place] for place in drawn)


def test_a_long_sequence_gives_one_token_of_sixteen() -> None:
    batch = settled({"input_ids": token_ids(2, 640)}, sample=1000, tokens=640)
    assert batch.sampled.shape == (2, 40)


def test_samples_do_not_depend_on_the_batch_or_the_padding() -> None:
    whole, shifted = (settled(long(side), sample=5, tokens=100) for side in ("right", "left"))
    for row, n in enumerate((100, 40, 10)):
        alone = Batch({"input_ids": long("right")["input_ids"][row : row + 1, :n]}, row, 0, 5, 0)
        state = torch.zeros(1, n, WIDTH)
        alone.settle(state, state)
        kept = whole.sampled_mask[row]
        assert alone.sampled[0].tolist() == whole.sampled[row][kept].tolist()
        assert (shifted.sampled[row][kept] - (100 - n)).tolist() == whole.sampled[row][kept].tolist()


def test_another_seed_draws_others() -> None:
    a, b = (torch.rand(5, generator=generator_for(seed, 3, 1)) for seed in (0, 1))
    c = torch.rand(5, generator=generator_for(0, 3, 1))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_labels_are_the_next_real_tokens_of_tokens_that_count(side: str, prefix: int) -> None:
    inputs = ragged(side)
    labels = settled(inputs, prefix).labels(Stack.find(llama(), inputs))
    assert labels is not None
    for row, n in enumerate(LENGTHS):
        start = 0 if side == "right" else 12 - n
        expected = torch.full((12,), -100)
        for t in range(start + prefix, start + n - 1):
            expected[t] = inputs["input_ids"][row, t + 1]
        assert torch.equal(labels[row], expected)


def test_given_labels_are_shifted_for_a_causal_model() -> None:
    ids = token_ids()
    given = torch.where(torch.arange(12) < 6, -100, ids)  # a prompt that is not trained on
    labels = settled({"input_ids": ids, "labels": given}).labels(Stack.find(llama(), {"input_ids": ids}))
    assert labels is not None
    assert torch.equal(labels[:, :-1], given[:, 1:])


def test_an_encoder_needs_given_labels() -> None:
    model, inputs, _ = ZOO["bert"]()
    stack = Stack.find(model, inputs)
    assert settled(inputs).labels(stack) is None
    given = {**inputs, "labels": token_ids(seed=3)}
    assert torch.equal(settled(given).labels(stack), given["labels"])  # as they are: an encoder names the token itself


def test_labels_of_whole_sequences() -> None:
    model, inputs, _ = ZOO["vit"]()
    stack = Stack.find(model, inputs)
    assert settled(inputs, tokens=17).labels(stack) is None
    labels = settled({**inputs, "labels": torch.tensor([1, 0, 1])}, tokens=17).labels(stack)
    assert labels is not None
    assert labels.tolist() == [[1], [0], [1]]


def test_no_logits_no_labels() -> None:
    model, inputs, _ = ZOO["nn.TransformerEncoder"]()
    assert settled(inputs).labels(Stack.find(model, inputs)) is None


def test_a_decoder_reads_its_own_tokens_and_mask() -> None:
    ids, mine = token_ids(), token_ids(seed=9)
    mask = torch.ones_like(mine)
    mask[:, 8:] = 0
    inputs = {"input_ids": ids, "decoder_input_ids": mine, "decoder_attention_mask": mask}
    batch = settled(inputs, side="decoder_")
    labels = batch.labels(Stack.find(t5(), inputs, "decoder.block"))
    assert torch.equal(batch.real, mask.bool())
    assert labels is not None
    assert torch.equal(labels[:, :7], mine[:, 1:8])
    assert (labels[:, 7:] == -100).all()


def test_a_part_of_a_batch_keeps_its_numbers() -> None:
    batch = settled(ragged("right"))
    part = batch.part(1, 3)
    part.settle(torch.zeros(2, 12, WIDTH), torch.zeros(2, 12, WIDTH))
    assert (part.first, part.size) == (1, 2)
    assert torch.equal(part.mask, batch.mask[1:])
    for row in range(2):
        mine, whole = (x.sampled[r][x.sampled_mask[r]].tolist() for x, r in ((part, row), (batch, row + 1)))
        assert mine == whole


def test_plain_tensors_have_no_mask() -> None:
    batch = Batch(vectors(3, 8), 0, 0, 4, 0)
    batch.settle(torch.zeros(3, 1, 8), torch.zeros(3, 8))
    assert batch.mask.shape == (3, 1)
    assert batch.mask.all()
