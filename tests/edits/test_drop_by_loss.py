from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from naive import blocks_of, forward, loss
from torch import Tensor, nn
from zoo import ZOO, gpt2, llama, token_ids

from layerwright.core.data import load_data
from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.paths import Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import plan_with
from layerwright.core.stack import Stack
from layerwright.edits.drop_by_loss import drop_by_loss


def taken_out(model: nn.Module, ids: Tensor, gone: tuple[int, ...]) -> float:
    """The loss of a model whose list of blocks lacks some: a full forward for every set."""
    smaller = copy.deepcopy(model)
    kept = nn.ModuleList(b for k, b in enumerate(blocks_of(smaller)) if k not in gone)
    if hasattr(smaller, "model"):
        smaller.model.layers = kept
    else:
        smaller.transformer.h = kept
    smaller.config.num_hidden_layers = len(kept)
    return loss(forward(smaller, ids), ids).item()


def planned(model: nn.Module, ids: Tensor, **options: object) -> tuple[Plan, pd.DataFrame]:
    kept: dict[str, pd.DataFrame] = {}
    inputs = {"input_ids": ids}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        plan = drop_by_loss(paths, 0, kept.__setitem__, **options)
    return plan, kept["drop_by_loss"]


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_set_is_as_a_model_without_those_blocks(build, blocks: int) -> None:
    model, ids = build(num_hidden_layers=5), token_ids(4)
    plan, frame = planned(model, ids, blocks=blocks, search="exhaustive")
    base = taken_out(model, ids, ())
    naive = {gone: taken_out(model, ids, gone) for gone in combinations(range(5), blocks)}
    assert len(frame) == len(naive)
    for row in frame.itertuples():
        gone = tuple(map(int, row.blocks.split()))
        assert row.loss == pytest.approx(naive[gone], abs=2e-6)
        assert row.value == pytest.approx(naive[gone] - base, abs=2e-6)
    best = min(naive, key=naive.__getitem__)
    assert plan.steps == ({"drop": list(best)},)


def test_greedy_takes_the_best_block_each_time() -> None:
    model, ids = gpt2(num_hidden_layers=6), token_ids(4)
    gone: tuple[int, ...] = ()
    for _ in range(3):
        gone += (min((k for k in range(6) if k not in gone), key=lambda k: taken_out(model, ids, (*gone, k))),)
    plan, _ = planned(model, ids, blocks=3, search="greedy")
    assert plan.steps == ({"drop": sorted(gone)},)


def test_a_wide_beam_finds_what_trying_all_finds() -> None:
    model, ids = llama(num_hidden_layers=6), token_ids(4)
    everything, _ = planned(model, ids, blocks=3, search="exhaustive")
    beam, frame = planned(model, ids, blocks=3, search="beam", width=15)
    assert beam.steps == everything.steps
    assert len(frame) == 20  # from all pairs every set of three is reached
    assert planned(model, ids, blocks=3)[0].steps == everything.steps


def test_many_sets_are_searched_by_a_beam_unless_asked_otherwise() -> None:
    model, ids = llama(num_hidden_layers=10), token_ids(2, 4)
    _, frame = planned(model, ids, blocks=5, width=2)
    assert 6 <= len(frame) <= 12  # of 252
    assert "of 252 sets" in planned(model, ids, blocks=5, width=2)[0].why


def test_the_interval_is_that_of_sequences_drawn_again() -> None:
    model, ids = gpt2(num_hidden_layers=4), token_ids(8)
    _, frame = planned(model, ids)
    with torch.no_grad():
        rises = np.array(
            [[taken_out(model, row[None], (k,)) - taken_out(model, row[None], ()) for row in ids] for k in range(4)]
        )
    for row in frame.itertuples():
        own = rises[int(row.blocks)]
        assert row.value == pytest.approx(own.mean(), abs=2e-6)
        drawn = own[np.random.default_rng(7).integers(0, 8, (4000, 8))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        spread = high - low
        assert row.low == pytest.approx(low, abs=0.15 * spread)
        assert row.high == pytest.approx(high, abs=0.15 * spread)


def test_a_single_sequence_has_no_interval() -> None:
    plan, frame = planned(gpt2(), token_ids(1))
    assert frame[["low", "high"]].isna().all(axis=None)
    assert "interval" not in plan.why


def test_a_dead_block_goes_first() -> None:
    model = llama(num_hidden_layers=5)
    for b in (1, 3):
        for p in (blocks_of(model)[b].self_attn.o_proj.weight, blocks_of(model)[b].mlp.down_proj.weight):
            nn.init.zeros_(p)
    for search in ("greedy", "beam", "exhaustive"):
        plan, frame = planned(model, token_ids(4), blocks=2, search=search)
        assert set(plan.order(5)) >= {0, 2, 4} or frame["value"][0] < 0
        rows = frame.set_index("blocks")["value"]
        if "1 3" in rows:
            assert rows["1 3"] == pytest.approx(0.0, abs=1e-7)


class Inverse(nn.Module):
    """1 / x."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


def test_a_set_that_breaks_the_model_comes_last() -> None:
    """Without the block that adds 1, the next one divides by zero: infinite is no small loss, nor is NaN."""
    shift, same, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    for layer, bias in ((shift, 1.0), (same, 0.0)):
        nn.init.eye_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    inputs = {"input": torch.zeros(6, 4), "labels": torch.arange(6) % 2}
    model = nn.Sequential(shift, Inverse(), same, head)
    kept: dict[str, pd.DataFrame] = {}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        assert paths.depth == 3
        plan = drop_by_loss(paths, 0, kept.__setitem__)
    frame = kept["drop_by_loss"]
    assert plan.steps == ({"drop": [1]},)  # 1 / 1 is 1: neither it nor the last does anything
    assert frame["blocks"].tolist() == ["1", "2", "0"]
    assert np.isfinite(frame["value"][:2]).all()
    assert np.isinf(frame["value"][2])
    assert np.isnan(frame["low"][2])


def test_a_model_whose_own_loss_is_no_number() -> None:
    model = gpt2()
    nn.init.constant_(blocks_of(model)[2].ln_1.weight, float("nan"))
    with pytest.raises(UserError, match="own loss is inf"):
        planned(model, token_ids(4))


def test_pictures() -> None:
    model, inputs, _ = ZOO["vit"]()
    batch = {**inputs, "labels": torch.tensor([1, 0, 1])}
    plan = plan_with("drop_by_loss", Stack.find(model, batch), batches=[batch])
    losses = []
    for s in range(3):
        smaller = copy.deepcopy(model)
        del smaller.vit.layers[s]
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(smaller.eval()(**inputs).logits, batch["labels"]).item())
    assert plan.steps == ({"drop": [losses.index(min(losses))]},)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"blocks": 3}, "at most 2"),
        ({"blocks": 0}, "got blocks 0"),
        ({"search": "best"}, "auto or greedy or beam or exhaustive"),
        ({"width": 0}, "got width 0"),
    ],
)
def test_bad_input(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(llama(), token_ids(), **options)


@pytest.mark.slow
def test_on_the_bundled_model_it_finds_the_best_of_all_pairs() -> None:
    model, tokenizer, _ = load_model("demo")
    data = load_data(None, model, tokenizer, max_tokens=1024)
    plan = plan_with("drop_by_loss", Stack.find(model, data.batches[0]), batches=data.batches, options={"blocks": 2})
    ids = torch.cat([batch["input_ids"] for batch in data.batches])
    naive = {pair: taken_out(model, ids, pair) for pair in combinations(range(12), 2)}
    best = min(naive, key=naive.__getitem__)
    assert plan.steps == ({"drop": list(best)},)
    for search in ("greedy", "beam"):
        other = plan_with(
            "drop_by_loss", Stack.find(model, data.batches[0]), batches=data.batches,
            options={"blocks": 2, "search": search},
        )  # fmt: skip
        assert naive[tuple(other.steps[0]["drop"])] <= sorted(naive.values())[3]
