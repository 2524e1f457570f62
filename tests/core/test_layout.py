"""Any layout of the stream is seen as sequences of tokens, and put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwright.core.layout import Layout, find_layout

CASES = {
    "batch, width": (Layout(0, 1, 2), (4, 6), (4, 1, 6)),
    "batch, token, width": (Layout(0, 2, 3), (4, 5, 6), (4, 5, 6)),
    "token, batch, width": (Layout(1, 2, 3), (5, 4, 6), (4, 5, 6)),
    "channels first": (Layout(0, 1, 4), (4, 6, 2, 3), (4, 6, 6)),
    "channels last": (Layout(0, 3, 4), (4, 2, 3, 6), (4, 6, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str) -> None:
    layout, shape, seen = CASES[name]
    x = torch.randn(shape)
    tokens = layout.tokens(x)
    assert tokens.shape == seen
    assert torch.equal(layout.native(tokens, x), x)
    assert torch.equal(tokens[1, 0], {2: lambda: x[1], 3: lambda: x.movedim(layout.batch, 0)[1, 0]}.get(
        x.ndim, lambda: x[1].movedim(layout.width - 1, -1)[0, 0])())  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mask_meets_its_tokens(name: str) -> None:
    layout, shape, seen = CASES[name]
    x, mask = torch.randn(shape), torch.rand(seen[:2]) > 0.5
    kept = torch.where(layout.token_mask(mask, x), x, 0.0)
    assert torch.equal(layout.tokens(kept), torch.where(mask[..., None], layout.tokens(x), 0.0))


def test_half_precision_is_seen_in_float32_and_put_back_as_it_was() -> None:
    layout, x = Layout(0, 2, 3), torch.randn(2, 3, 4).bfloat16()
    assert layout.tokens(x).dtype == torch.float32
    assert layout.native(layout.tokens(x), x).dtype == torch.bfloat16
    assert layout.tokens(x.double()).dtype == torch.float64


def test_fewer_or_more_sequences_than_the_pattern() -> None:
    like = torch.randn(4, 6, 2, 3)
    assert Layout(0, 1, 4).native(torch.randn(1, 6, 6), like).shape == (1, 6, 2, 3)


def test_the_width_is_the_axis_that_the_weights_know() -> None:
    grid = nn.Conv2d(6, 6, 3)
    assert find_layout((4, 6, 2, 2), 4, [grid]) == Layout(0, 1, 4)
    assert find_layout((4, 2, 2, 6), 4, [nn.Linear(6, 6)]) == Layout(0, 3, 4)


def test_tokens_may_stand_before_the_batch() -> None:
    assert find_layout((5, 4, 6), 4, []) == Layout(1, 2, 3)
    assert find_layout((4, 4, 6), 4, []) == Layout(0, 2, 3)


def test_no_batch_axis() -> None:
    with pytest.raises(ValueError, match="no batch axis of 4"):
        find_layout((6,), 4, [])
