"""Planners are plain functions: what they need is read off their arguments, and what they give is a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from naive import tables
from thinned import thinned
from zoo import ZOO, gpt2, llama, token_ids

import layerwright.edits
from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.paper import BY_ID
from layerwright.core.paths import Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import PLANNERS, WORDS, Planner, fewer_than, find_planner, in_words, plan_with, planner
from layerwright.core.registry import MEASURES
from layerwright.core.stack import Stack

# Searches of a size for tests.
SMALL: dict[str, dict[str, Any]] = {
    "search_paths": {"samples": 4, "simulations": 6},
    "parallel_pairs": {"share": 10.0},
    "learned_growth": {"steps": 3},
}


@pytest.fixture
def registry() -> Iterator[dict[str, Planner]]:
    """Planners registered by a test are gone after it."""
    before = dict(PLANNERS)
    yield PLANNERS
    PLANNERS.clear()
    PLANNERS.update(before)


def test_the_arguments_say_what_is_needed(registry: dict[str, Planner]) -> None:
    @planner(paper="2403.03853", tier="deep")
    def drop_the_first(block_influence: pd.DataFrame, depth: int, *, blocks: int = 1) -> Plan:
        """Leave out the first blocks.

        Those are

            0 … n − 1

        whatever they do.
        """
        return Plan(({"drop": list(range(blocks))},), why=f"{len(block_influence)} rows, {depth} blocks.")

    entry = registry["drop_the_first"]
    assert entry.measures == ("block_influence",)
    assert entry.needs == ("block_influence", "depth")
    assert entry.options == {"blocks": 1}
    assert (entry.tier, entry.title, entry.formula) == ("deep", "Leave out the first blocks", "0 … n − 1")
    assert entry.definition == "Leave out the first blocks. Those are whatever they do."
    assert entry.paper is BY_ID["2403.03853"]
    stack = Stack.find(llama(), {"input_ids": token_ids()})
    frame = pd.DataFrame({"block": [0, 1], "value": [0.0, 1.0]})
    plan = plan_with("drop_the_first", stack, tables={"block_influence": frame}, options={"blocks": 2}, base="mine")
    assert plan == Plan(({"drop": [0, 1]},), base="mine", why="2 rows, 3 blocks.")


def test_a_name_is_taken_once(registry: dict[str, Planner]) -> None:
    def drop_by_angle(depth: int) -> Plan:
        """Nothing."""
        return Plan(())

    with pytest.raises(ValueError, match="registered twice"):
        planner(paper="2403.17887")(drop_by_angle)
    with pytest.raises(ValueError, match="expected one of quick"):
        planner(paper="2403.17887", tier="slow")


def test_every_need_is_a_measure_or_a_word() -> None:
    for entry in PLANNERS.values():
        assert set(entry.needs) <= {*WORDS, *MEASURES}, entry.name


def test_every_planner_has_a_title_and_a_paper_of_the_bibliography() -> None:
    assert len(PLANNERS) == 11
    for entry in PLANNERS.values():
        assert entry.title, entry.name
        assert entry.arxiv in BY_ID, entry.name


@pytest.mark.parametrize(
    "name, model", thinned(2, sorted(PLANNERS), ["llama", "gpt2", "nn.TransformerEncoder, norm first"])
)
def test_every_planner_gives_a_plan_with_reasons_and_leaves_the_model_alone(name: str, model: str) -> None:
    net, inputs, _ = ZOO[model]()
    if isinstance(inputs, torch.Tensor) and name in ("drop_by_loss", "search_paths", "learned_growth"):
        pytest.skip("these need the model's answers, and this one gives none")
    before = {key: x.clone() for key, x in net.state_dict().items()}
    entry = find_planner(name)
    found = tables(net, inputs, *entry.measures) if entry.measures else {}
    stack = Stack.find(net, inputs)
    plans = [
        plan_with(name, stack, tables=found, batches=[inputs], options=SMALL.get(name, {}), base="here", seed=1)
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    assert plans[0].base == "here"
    assert plans[0].steps
    assert plans[0].why.endswith(".")
    assert "\n" not in plans[0].why
    assert Plan.from_yaml(plans[0].to_yaml()) == plans[0]
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())


@pytest.mark.parametrize("name", ["drop_by_loss", "drop_by_influence", "drop_by_angle", "search_paths"])
def test_plans_that_choose_blocks_have_an_order(name: str) -> None:
    model, inputs = gpt2(num_hidden_layers=4), {"input_ids": token_ids(4)}
    found = tables(model, inputs, "angular_distance", "block_influence")
    plan = plan_with(name, Stack.find(model, inputs), tables=found, batches=[inputs], options=SMALL.get(name, {}))
    order = plan.order(4)
    assert order
    assert set(order) <= set(range(4))
    assert name == "search_paths" or len(order) == 3


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_every_plan_can_be_carried_out(name: str) -> None:
    model, inputs = llama(num_hidden_layers=4), {"input_ids": token_ids(4)}
    entry, stack = find_planner(name), Stack.find(model, inputs)
    found = tables(model, inputs, *entry.measures) if entry.measures else {}
    plan = plan_with(name, stack, tables=found, batches=[inputs], options=SMALL.get(name, {}))
    made, _ = apply(stack, plan, inputs)
    with torch.no_grad():
        assert made.eval()(**inputs).logits.isfinite().all()


def test_tables_of_what_was_tried_carry_their_meaning() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    kept: dict[str, pd.DataFrame] = {}
    for name in ("drop_by_loss", "parallel_pairs", "search_paths"):
        plan_with(name, stack, batches=[inputs], options=SMALL.get(name, {}), keep=kept.__setitem__)
    assert set(kept) == {"drop_by_loss", "parallel_pairs", "search_paths", "search_paths_shared"}
    for name, frame in kept.items():
        assert frame.attrs["name"] == name
        assert frame.attrs["unit"]
        assert frame.attrs["definition"]
        assert frame.attrs["paper"]["arxiv"]
        assert len(frame)


def test_the_work_is_told() -> None:
    inputs = {"input_ids": token_ids()}
    told: list[tuple[str, int, int]] = []
    stack = Stack.find(llama(), inputs)
    plan_with("drop_by_loss", stack, batches=[inputs, inputs], progress=lambda *step: told.append(step))
    assert told == [("unchanged model", n, 2) for n in (1, 2)] + [("sets of blocks", n, 6) for n in range(1, 7)]


# Bad input


def test_an_unknown_planner_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown planner 'drop_by_lose'; did you mean 'drop_by_loss'"):
        find_planner("drop_by_lose")
    with pytest.raises(UserError, match="unknown planner"):
        plan_with("nothing_such", Stack.find(llama(), {"input_ids": token_ids()}))


def test_an_unknown_option_is_told_the_nearest() -> None:
    stack = Stack.find(llama(), {"input_ids": token_ids()})
    with pytest.raises(UserError, match="'drop_by_loss' has no option 'block'; did you mean 'blocks'"):
        plan_with("drop_by_loss", stack, options={"block": 2})
    with pytest.raises(UserError, match="'layernorm_scaling' has no option 'x'; it has none"):
        plan_with("layernorm_scaling", stack, options={"x": 2})


def test_a_table_that_could_not_be_measured() -> None:
    with pytest.raises(UserError, match="'drop_by_influence' reads block_influence"):
        plan_with("drop_by_influence", Stack.find(llama(), {"input_ids": token_ids()}))


def test_a_planner_that_runs_the_model_needs_data() -> None:
    with pytest.raises(UserError, match="no data"):
        plan_with("drop_by_loss", Stack.find(llama(), {"input_ids": token_ids()}))


def test_no_labels_where_a_loss_is_needed() -> None:
    model, inputs, _ = ZOO["bert"]()
    for name, options in {"drop_by_loss": {}, "search_paths": {"samples": 2}}.items():
        with pytest.raises(UserError, match="holds no labels"):
            plan_with(name, Stack.find(model, inputs), batches=[inputs], options=options)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None])
def test_numbers_of_blocks_that_are_none(count: Any) -> None:
    with pytest.raises(UserError, match="got blocks"):
        fewer_than(count, 6)


def test_one_block_must_stay() -> None:
    assert fewer_than(5, 6) == 5
    with pytest.raises(UserError, match="got blocks 6; expected at most 5"):
        fewer_than(6, 6)


def test_blocks_in_words() -> None:
    assert in_words([0, 1, 2, 5, 8, 9]) == "blocks 0–2, 5 and 8–9"


def test_measured_tables_need_no_run_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads tables only works for a model that is too large to run."""
    model, inputs = llama(), {"input_ids": token_ids()}
    found = tables(model, inputs, "angular_distance", "stream_scale")
    stack = Stack.find(model, inputs)
    monkeypatch.setattr(Paths, "runs", property(lambda self: pytest.fail("the model was run")))
    for name in ("drop_by_angle", "layernorm_scaling", "inverse_depth_scaling", "stack_grow", "recursive"):
        assert plan_with(name, stack, tables=found).steps


def test_the_room_registers_all() -> None:
    assert layerwright.edits.__doc__
    assert {e.function.__module__.rpartition(".")[0] for e in PLANNERS.values()} == {"layerwright.edits"}
