from __future__ import annotations

import torch
from naive import column, stream, tables
from torch.nn.functional import cosine_similarity
from zoo import WIDTH, gpt2, token_ids, vectors

from layerwright.measures.residual_cosine import residual_cosine


def test_hand_values() -> None:
    before = torch.tensor([[[1.0, 0.0]] * 4])
    update = torch.tensor([[[-2.0, 0.0], [0.0, 5.0], [3.0, 0.0], [3.0, 3.0]]])
    torch.testing.assert_close(residual_cosine(update, before), torch.tensor([[-1.0, 0.0, 1.0, 0.5**0.5]]))


def test_as_the_paper_does_it() -> None:
    """The mean over all tokens of cos(a, h), cos(m, h + a) and cos(a + m, h)."""
    model, ids = gpt2().double(), token_ids(5)
    frame = tables(model, {"input_ids": ids}, "residual_cosine")["residual_cosine"]
    h, a, m = stream(model, ids)
    for k in range(3):
        for part, x, y in (
            ("attention", a[k], h[k]),
            ("mlp", m[k], h[k] + a[k]),
            ("block", a[k] + m[k], h[k]),
        ):
            expected = cosine_similarity(x, y, dim=-1).mean()
            torch.testing.assert_close(column(frame, part=part, block=k)[0], expected, rtol=1e-5, atol=1e-8)


def test_turning_and_scaling_change_nothing() -> None:
    update, before = vectors(2, 5, WIDTH), vectors(3, 5, WIDTH)[1:].flip(1)
    turn = torch.linalg.qr(vectors(WIDTH, WIDTH)).Q
    expected = residual_cosine(update, before)
    torch.testing.assert_close(residual_cosine(4 * update @ turn, 0.1 * before @ turn), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(residual_cosine(-update, before), -expected)


def test_a_zero_update_and_a_zero_stream_have_cosine_zero() -> None:
    x = vectors(1, 3, WIDTH)
    assert (residual_cosine(0 * x, x) == 0).all()
    assert (residual_cosine(x, 0 * x) == 0).all()
