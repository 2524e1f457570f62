from __future__ import annotations

import math

import numpy as np
import pytest
from naive import column, tables
from zoo import gpt2, token_ids

from layerwright.core.table import Field
from layerwright.measures.first_order_agreement import first_order_agreement


def agreement(predicted: list[float], measured: list[float]) -> float:
    a = Field(("block",), [(k,) for k in range(len(predicted))], np.array(predicted), np.zeros(len(predicted)))
    keys = [(k, "loss_increase") for k in range(len(measured))]
    b = Field(("source", "quantity"), keys, np.array(measured), np.zeros(len(measured)))
    return first_order_agreement(a, b)["rank_correlation"]


def test_hand_values() -> None:
    assert agreement([1, 2, 3], [1, 10, 100]) == pytest.approx(1.0)
    assert agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert agreement([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)  # 1 − 6·2/(4·15)


def ranks(x: list[float]) -> list[float]:
    """Ranks from 1, ties sharing their mean."""
    return [sum(y < v for y in x) + (sum(y == v for y in x) + 1) / 2 for v in x]


def test_as_the_correlation_of_ranks() -> None:
    frames = tables(gpt2(num_hidden_layers=5), {"input_ids": token_ids()}, "first_order_agreement")
    a = ranks(column(frames["first_order_skip"]).tolist())
    b = ranks(column(frames["skip_output"], quantity="loss_increase").tolist())
    expected = np.corrcoef(a, b)[0, 1]
    assert column(frames["first_order_agreement"]).item() == pytest.approx(expected)


def test_only_the_order_matters() -> None:
    x, y = [0.3, -1.0, 2.0, 0.1], [5.0, 1.0, 2.0, 7.0]
    expected = agreement(x, y)
    assert agreement([math.exp(v) for v in x], [v**3 for v in y]) == pytest.approx(expected)
    order = [2, 0, 3, 1]
    assert agreement([x[k] for k in order], [y[k] for k in order]) == pytest.approx(expected)


def test_undefined_blocks_are_left_out_and_constants_have_no_order() -> None:
    assert agreement([1, math.nan, 3, 4], [1, 2, math.nan, 9]) == pytest.approx(1.0)
    assert math.isnan(agreement([1, 1, 1], [1, 2, 3]))
    assert math.isnan(agreement([1, math.nan, math.nan], [1, 2, 3]))
    assert math.isnan(agreement([1.0], [1.0]))
