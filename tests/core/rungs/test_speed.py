"""Time and memory are measured in turns; no test depends on how long anything takes."""

from __future__ import annotations

from typing import Any

import pytest
from surgery import case, climb, reordered
from zoo import ZOO, llama, token_ids

from layerwright.core.rungs import speed as module
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.speed import speed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Time by the depth of the model: a block takes a second, whatever is done. Gives the models in their turns."""
    turns: list[Any] = []

    def seconds(model: Any, work: Any) -> tuple[float, Any]:
        turns.append(model)
        slow = 100.0 if len(turns) <= 4 else 1.0  # the first round, until everything is in its place
        return slow * len(model.model.layers), work()

    monkeypatch.setattr(module, "_seconds", seconds)
    return turns


def test_ratios_are_after_over_before_in_every_phase(clock: list[Any]) -> None:
    given = case((0, 2), requirements={"latency": {"batch": [1, 5], "tokens": 2}})
    found = climb(speed, given)
    assert found.verdict == "measured"
    phases = ["prefill at batch 1", "decode at batch 1", "prefill at batch 5", "decode at batch 5"]
    assert list(found.numbers["times"]) == phases
    for phase, times in found.numbers["times"].items():
        assert times["ratio"] == pytest.approx(2 / 3)
        assert times["before"] == (1.5 if "decode" in phase else 3.0)
    # A round thrown away and five that count, two phases each, in turns: first one model leads, then the other.
    leaders = clock[:24:4]
    assert len(clock) == 2 * 6 * 2 * 2
    assert leaders == [given.after, given.before] * 3


@pytest.mark.usefixtures("clock")
def test_a_limit_is_held_in_every_phase() -> None:
    passed = climb(speed, case((0, 2), requirements={"latency": {"max_ratio": 0.67}}))
    assert (passed.verdict, passed.limit) == ("passed", "each ≤ ×0.67")
    failed = climb(speed, case((0, 2), requirements={"latency": {"max_ratio": 0.6}}))
    assert failed.verdict == "failed"
    expected = "prefill at batch 1 takes 0.67 times as long; decode at batch 1 takes 0.67 times as long"
    assert failed.finding == expected


def test_weights_are_counted_in_bytes_and_shared_ones_once() -> None:
    base = llama(tie_word_embeddings=True).eval()
    found = climb(speed, case((0, 1, 2, 2), base, after=reordered(base, (0, 1, 2, 2)))).numbers["weights"]
    buffers = 2 * 4 * 4  # two tables of rotary frequencies of 4 numbers each
    block = 4 * sum(p.numel() for p in base.model.layers[0].parameters())
    assert found["before"] == 4 * (40 * 16 + 16) + 3 * block + buffers
    assert found["after"] == found["before"] + block


def test_a_clock_that_is_real_gives_positive_times() -> None:
    found = climb(speed, case((0, 2), inputs={"input_ids": token_ids(2, 5)}))
    assert all(times["before"] > 0 and times["after"] > 0 for times in found.numbers["times"].values())
    assert "peak" not in found.numbers  # nothing tells it on a CPU


@pytest.mark.parametrize("name", ["bert", "vit", "own wrapper", "t5 decoder"])
def test_models_without_a_cache_of_their_own_are_timed_by_whole_passes(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    found = climb(speed, Case(model.eval(), model, inputs, blocks=expected.blocks))
    assert list(found.numbers["times"]) == ["forward at batch 1"]


@pytest.mark.parametrize("name", ["mamba", "gpt2"])
def test_models_with_other_caches_decode(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    found = climb(speed, Case(model.eval(), model, inputs))
    assert list(found.numbers["times"]) == ["prefill at batch 1", "decode at batch 1"]
