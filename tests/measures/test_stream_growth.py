from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from naive import column, tables
from scipy.stats import linregress
from torch import Tensor, nn
from zoo import WIDTH, gpt2, token_ids, vectors

from layerwright.core.table import Field
from layerwright.measures.stream_growth import stream_growth


def growth(scale: list[float]) -> dict[str, float]:
    n = len(scale)
    return stream_growth(Field(("point",), [(k,) for k in range(n)], np.array(scale), np.zeros(n)))


def test_hand_values() -> None:
    assert growth([1.0, 2.0, 4.0, 8.0]) == pytest.approx({"rate": math.log(2), "ratio": 8.0})
    assert growth([3.0, 3.0]) == pytest.approx({"rate": 0.0, "ratio": 1.0})


def test_slope_by_another_hand() -> None:
    frames = tables(gpt2(), {"input_ids": token_ids()}, "stream_growth")
    scale = column(frames["stream_scale"]).numpy()
    found = frames["stream_growth"].set_index("quantity")["value"]
    assert found["rate"] == pytest.approx(linregress(np.arange(4), np.log(scale)).slope)
    assert found["ratio"] == pytest.approx(scale[3] / scale[0])


def test_the_unit_of_the_stream_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(1, 5, 7)
    assert growth(list(1e3 * scale)) == pytest.approx(growth(list(scale)))


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_tower_that_doubles() -> None:
    found = tables(nn.Sequential(*(Doubles() for _ in range(4))), vectors(5, WIDTH), "stream_growth")["stream_growth"]
    torch.testing.assert_close(column(found), torch.tensor([math.log(2), 16.0]).double())
    torch.testing.assert_close(column(found, "low"), torch.tensor([math.log(2), 16.0]).double())


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_state_without_a_scale_leaves_it_undefined(bad: float) -> None:
    assert all(math.isnan(x) for x in growth([1.0, bad, 2.0]).values())
