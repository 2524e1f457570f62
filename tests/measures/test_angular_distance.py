from __future__ import annotations

import math

import pytest
import torch
from naive import column, stream, tables
from zoo import WIDTH, gpt2, token_ids, vectors

from layerwright.measures.angular_distance import angular_distance


def test_hand_values() -> None:
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[-3.0, 0.0]], [[-3.0, 3.0]]])
    found = {key: value.item() for key, value in angular_distance(states).items()}
    assert found == pytest.approx({(0, 1): 0.5, (0, 2): 1.0, (0, 3): 0.75, (1, 1): 0.5, (1, 2): 0.25, (2, 1): 0.25})


def test_as_the_paper_does_it() -> None:
    """arccos of the cosine of two states at the last token, over π, averaged over sequences, for every l and n."""
    model, ids = gpt2().double(), token_ids(5)
    frame = tables(model, {"input_ids": ids}, "angular_distance")["angular_distance"]
    h, _, _ = stream(model, ids)
    expected = {}
    for block in range(3):
        for gap in range(1, 4 - block):
            x, y = h[block][:, -1], h[block + gap][:, -1]
            cosines = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
            expected[block, gap] = (cosines.arccos() / math.pi).mean().item()
    found = {(block, gap): column(frame, block=block, gap=gap).item() for block, gap in expected}
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(frame) == len(expected) == 6
    assert (frame["tokens"] == 5).all()


def test_turning_and_scaling_change_nothing_and_stretches_obey_the_triangle() -> None:
    states = vectors(5, 4, WIDTH)
    turn = torch.linalg.qr(vectors(WIDTH, WIDTH)).Q
    expected = angular_distance(states)
    scaled = angular_distance(states @ turn * torch.tensor([1.0, 9.0, 0.1, 2.0, 5.0])[:, None, None])
    for (block, gap), angle in expected.items():
        torch.testing.assert_close(scaled[block, gap], angle, rtol=1e-5, atol=1e-6)
        if gap > 1:
            assert (angle <= expected[block, gap - 1] + expected[block + gap - 1, 1] + 1e-6).all()


def test_a_state_that_stays_has_angle_zero_and_a_zero_state_a_half() -> None:
    x = vectors(1, 4, WIDTH)
    found = angular_distance(torch.cat([x, 2 * x, 0 * x]))
    torch.testing.assert_close(found[0, 1], torch.zeros(4), rtol=0, atol=1e-6)
    assert (found[0, 2] == 0.5).all()
