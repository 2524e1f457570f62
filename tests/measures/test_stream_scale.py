from __future__ import annotations

import torch
from naive import column, stream, tables
from zoo import WIDTH, gpt2, token_ids, vectors

from layerwright.measures.stream_scale import stream_scale


def test_hand_value() -> None:
    torch.testing.assert_close(stream_scale(torch.tensor([[[1.0, -1.0, 3.0, 5.0]]])), torch.tensor([[5.0**0.5]]))


def test_as_defined() -> None:
    """The standard deviation over features of every token, averaged over tokens, at all L + 1 states."""
    model, ids = gpt2().double(), token_ids(5)
    frame = tables(model, {"input_ids": ids}, "stream_scale")["stream_scale"]
    h, _, _ = stream(model, ids)
    assert frame["point"].tolist() == [0, 1, 2, 3]
    for k, state in enumerate(h):
        deviations = [token.sub(token.mean()).square().mean().sqrt() for token in state.flatten(0, 1)]
        torch.testing.assert_close(column(frame, point=k)[0], torch.stack(deviations).mean(), rtol=1e-6, atol=0)


def test_it_scales_with_the_stream_and_does_not_see_its_mean() -> None:
    x = vectors(2, 3, WIDTH)
    torch.testing.assert_close(stream_scale(7 * x), 7 * stream_scale(x))
    torch.testing.assert_close(stream_scale(x + 5), stream_scale(x), rtol=1e-4, atol=1e-5)


def test_constant_features_have_none() -> None:
    assert (stream_scale(torch.full((1, 2, WIDTH), 3.0)) == 0).all()
    assert (stream_scale(torch.zeros(1, 2, WIDTH)) == 0).all()
