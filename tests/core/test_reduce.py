"""Statistics in one pass equal those of all numbers at once, and the bootstrap interval covers what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import layerwright.measures  # noqa: F401  registers them
from layerwright.core.desk import Desk, Numbers
from layerwright.core.packet import Packet
from layerwright.core.reduce import Reduced, Reducer, quantiles
from layerwright.core.registry import choose

SEED = 0


def random_numbers(sequences: int, tokens: int, rows: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers `[row, sequence, token]` that differ between sequences, and which tokens are real."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, sequences, 1)) + rng.exponential(size=(rows, sequences, tokens))
    lengths = rng.integers(1, tokens + 1, sequences)
    return torch.tensor(values, dtype=torch.float32), torch.arange(tokens) < torch.tensor(lengths)[:, None]


def reduced(values: Tensor, mask: Tensor | None, batch: int, where: Tensor | None = None) -> Reduced:
    """All rows through a reducer, some sequences at a time."""
    reducer = Reducer()
    for start in range(0, values.shape[1], batch):
        part = slice(start, start + batch)
        for row, x in enumerate(values):
            reducer.add((row,), x[part], None if where is None else where[part])
        reducer.close_batch(None if mask is None else mask[part])
    return reducer.finish()


def test_last_sequences_of_which_nothing_counts_are_no_part_of_the_intervals() -> None:
    values, mask = random_numbers(20, 9)
    few = torch.arange(20)[:, None] < 12
    found, expected = reduced(values, mask, 8, where=few.expand(mask.shape)), reduced(values[:, :12], mask[:12], 8)
    for name, column in expected.columns(SEED).items():
        np.testing.assert_array_equal(found.columns(SEED)[name], column, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_columns_are_those_of_all_tokens_at_once(batch: int) -> None:
    values, mask = random_numbers(20, 9)
    columns = reduced(values, mask, batch).columns(SEED)
    for row, x in enumerate(values.double()):
        counted = x[mask].numpy()
        assert columns["value"][row] == pytest.approx(counted.mean(), rel=1e-6)
        assert columns["std"][row] == pytest.approx(counted.std(), rel=1e-6)
        assert columns["p95"][row] == pytest.approx(np.quantile(counted, 0.95), rel=1e-6)
        assert columns["max"][row] == pytest.approx(counted.max(), rel=1e-6)
        assert columns["tokens"][row] == len(counted)
        assert columns["nonfinite"][row] == 0


def test_the_batch_split_changes_nothing() -> None:
    values, mask = random_numbers(40, 300, rows=2)  # more tokens than the sample for the quantile holds
    expected = reduced(values, mask, 40).columns(SEED)
    for batch in (1, 7, 13):
        for name, column in reduced(values, mask, batch).columns(SEED).items():
            np.testing.assert_allclose(column, expected[name], rtol=1e-12, err_msg=name)


def test_the_thinned_quantile_is_near_the_exact_one() -> None:
    values, mask = random_numbers(200, 200, rows=1)
    columns = reduced(values, mask, 16).columns(SEED)
    exact = values[0][mask].numpy()
    assert len(exact) > 16_000
    # The rank of the value found is binomial: 0.95 of some 4,000 numbers, give or take four standard errors.
    rank = (exact < columns["p95"][0]).mean()
    assert abs(rank - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2048)


def test_where_narrows_the_tokens_of_a_row() -> None:
    values, mask = random_numbers(6, 5)
    where = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    columns = reduced(values, mask, 2, where).columns(SEED)
    counted = values[:, mask & where].double().numpy()
    np.testing.assert_allclose(columns["value"], counted.mean(1), rtol=1e-6)
    np.testing.assert_allclose(columns["p95"], np.quantile(counted, 0.95, axis=1), rtol=1e-6)


def test_undefined_numbers_are_counted_and_left_out() -> None:
    values = torch.tensor([[[1.0, torch.nan], [3.0, torch.inf], [torch.nan, -torch.inf]]])
    columns = reduced(values, None, 2).columns(SEED)
    assert (columns["value"], columns["max"], columns["tokens"], columns["nonfinite"]) == (2.0, 3.0, 2, 4)
    assert columns["p95"] == pytest.approx(2.9)


def test_a_row_without_a_number_is_nan_everywhere() -> None:
    columns = reduced(torch.full((1, 3, 2), torch.nan), None, 3).columns(SEED)
    assert all(np.isnan(columns[name]).all() for name in ("value", "low", "high", "std", "p95", "max"))
    assert (columns["tokens"], columns["nonfinite"]) == (0, 6)


def test_one_sequence_has_no_interval() -> None:
    columns = reduced(torch.ones(1, 1, 5), None, 1).columns(SEED)
    assert np.isnan(columns["low"]).all()
    assert np.isnan(columns["high"]).all()
    assert columns["value"] == 1.0


def test_numbers_by_sequence_and_single_numbers() -> None:
    assert reduced(torch.tensor([[1.0, 2.0, 6.0]]), None, 2).mean() == 3.0
    reducer = Reducer()
    reducer.add(("a",), torch.tensor(4.0))
    reducer.close_batch(None)
    assert reducer.finish().mean() == 4.0


def test_nothing_added_gives_no_rows() -> None:
    reducer = Reducer()
    reducer.close_batch(None)
    assert reducer.finish().keys == []


@pytest.mark.parametrize("later", [(0, 1), (1, 2)])
def test_rows_that_change_between_batches_are_a_mistake(later: tuple[int, ...]) -> None:
    reducer = Reducer()
    reducer.add((0,), torch.ones(2))
    reducer.close_batch(None)
    for row in later:
        reducer.add((row,), torch.ones(3))
    reducer.close_batch(None)
    with pytest.raises(RuntimeError, match="other rows"):
        reducer.finish()


@pytest.mark.parametrize("block_outer", [True, False])
def test_rows_may_come_block_by_block_and_from_packets(block_outer: bool) -> None:
    values, mask = random_numbers(40, 300, rows=4)  # more tokens than the sample for the quantile holds
    expected = reduced(values, mask, 8)
    measure = next(m for m in choose("quick") if m.scope == "block")
    whole, desk = Desk([measure], {}), Desk([measure], {})
    places = [(rows, start) for rows in ((0, 1), (2, 3)) for start in range(0, 40, 8)]
    for rows, start in places if block_outer else sorted(places, key=lambda place: place[1]):
        for row in rows:
            desk.add(measure.name, (row, "block"), Numbers(values[row, start : start + 8]))
        desk.close("block", mask[start : start + 8])
        whole.put(Packet.from_bytes(desk.take().to_bytes()))
    found = whole.reducers[measure.name].finish()
    assert [key[0] for key in found.keys] == [key[0] for key in expected.keys]
    for name, column in found.columns(SEED).items():
        np.testing.assert_array_equal(column, expected.columns(SEED)[name], err_msg=name)


def test_sums_are_wide_enough_for_a_small_spread_on_a_large_mean() -> None:
    values = 1000 + torch.randn(1, 50, 200, generator=torch.Generator().manual_seed(0))
    columns = reduced(values, None, 8).columns(SEED)
    assert columns["std"][0] == pytest.approx(values.double().std(correction=0).item(), rel=1e-6)


def test_the_same_seed_draws_the_same_sequences_for_every_row() -> None:
    values, mask = random_numbers(10, 4, rows=1)
    means, _ = reduced(torch.cat([values, 2 * values]), mask, 10).resampled(SEED, 50)
    np.testing.assert_allclose(means[1], 2 * means[0])


def test_quantiles_pass_over_undefined_replicates() -> None:
    low, high = quantiles(np.array([[0.0, np.nan, 1.0], [np.nan] * 3]))
    np.testing.assert_allclose(low, [0.025, np.nan])
    np.testing.assert_allclose(high, [0.975, np.nan])


def coverage(interval) -> int:
    """In how many of 200 data sets the interval holds the true mean 0 of numbers that share an offset by sequence."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng([1, seed])
        values = rng.normal(size=(60, 1)) + rng.normal(size=(60, 12))
        low, high = interval(torch.tensor(values, dtype=torch.float32)[None])
        hits += bool(low <= 0.0 <= high)
    return hits


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    def bootstrap(values: Tensor) -> tuple[float, float]:
        columns = reduced(values, None, 60).columns(SEED)
        return columns["low"].item(), columns["high"].item()

    low, high = binom.interval(0.999, 200, 0.95)
    assert low <= coverage(bootstrap) <= high


def test_an_interval_over_tokens_would_not() -> None:
    """The control: tokens of one sequence are no independent draws."""

    def over_tokens(values: Tensor) -> tuple[float, float]:
        error = 1.96 * values.std() / values.numel() ** 0.5
        return (values.mean() - error).item(), (values.mean() + error).item()

    assert coverage(over_tokens) < binom.interval(0.999, 200, 0.95)[0]
