from __future__ import annotations

import pytest
import torch
from naive import blocks_of, loss, tables
from torch import Tensor, nn
from zoo import gpt2, llama, token_ids

from layerwright.maths.gradient import MatrixGradient
from layerwright.measures.gradient_similarity import gradient_similarity


def test_hand_value() -> None:
    one = MatrixGradient(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0]]]))
    two = MatrixGradient(torch.tensor([[[-1.0, 0.0]]]), torch.tensor([[[5.0]]]))
    assert gradient_similarity(one, two, torch.tensor([0]))[()][0].tolist() == [-1.0]
    assert gradient_similarity(one, one, torch.tensor([0]))[()][0].tolist() == [1.0]


def gradients(model: nn.Module, ids: Tensor) -> list[dict[tuple[int, str], Tensor]]:
    found = []
    for row in ids:
        model.zero_grad()
        loss(model.eval()(input_ids=row[None], use_cache=False).logits, row[None]).backward()
        found.append({
            (k, name.removesuffix(".weight")): p.grad.flatten().clone()
            for k, block in enumerate(blocks_of(model))
            for name, p in block.named_parameters()
            if p.ndim == 2
        })  # fmt: skip
    return found


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_by_whole_gradients(make: object) -> None:
    model, ids = make().double(), token_ids(5, 9)  # type: ignore[operator]
    frame = tables(model, {"input_ids": ids}, "gradient_similarity")["gradient_similarity"]
    given = gradients(model, ids)
    assert len(frame)
    for row in frame.itertuples():
        here, depth = (row.block, row.matrix), len(blocks_of(model))
        if row.beside == "sequence before":
            pairs = [(given[b][here], given[b - 1][here]) for b in (1, 3)]
            assert row.tokens == 2
        else:
            other = (row.block + 1, row.matrix) if row.beside == "next block" else (row.block, row.beside)
            assert other[0] < depth
            pairs = [(g[here], g[other]) for g in given]
        expected = torch.stack([torch.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()
        assert row.value == pytest.approx(float(expected), abs=1e-5), here


def test_the_same_sequence_twice_pulls_the_same_way() -> None:
    ids = token_ids(1, 9).repeat(2, 1)
    frame = tables(llama(), {"input_ids": ids}, "gradient_similarity")["gradient_similarity"]
    pairs = frame[frame.beside == "sequence before"]
    assert len(pairs)
    assert pairs["value"].to_numpy() == pytest.approx(1.0, abs=1e-5)
