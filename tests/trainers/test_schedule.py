"""The learning rate over a run."""

from __future__ import annotations

import math

import pytest

from layerwright.trainers.schedule import learning_rate


@pytest.mark.parametrize("steps, warmup", [(1, 0), (1, 1), (10, 0), (10, 3), (10, 9), (10, 10), (300, 15)])
def test_it_rises_in_a_line_and_falls_to_a_tenth(steps: int, warmup: int) -> None:
    rates = [learning_rate(k, steps, warmup) for k in range(steps)]
    assert rates[:warmup] == [(k + 1) / warmup for k in range(warmup)]
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)
    if warmup < steps:
        assert rates[-1] == pytest.approx(0.1)
    if warmup:
        assert rates[warmup - 1] == 1


def test_the_middle_of_the_fall_is_the_mean_of_both_ends() -> None:
    assert learning_rate(59, 100, 20) == pytest.approx(0.55)
    assert learning_rate(39, 100, 20) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
