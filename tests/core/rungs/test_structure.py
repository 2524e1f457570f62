"""Faults that show without comparing answers: each is found, and named."""

from __future__ import annotations

import pytest
import torch
from surgery import FULL, SLIDING, case, climb, gemma, nudged, reordered
from torch import Tensor, nn
from zoo import WIDTH, ZOO, Residual, Wrapper, gpt2, llama, token_ids, vectors

from layerwright.core.rungs.case import Case
from layerwright.core.rungs.structure import structure

ORDERS = [(0, 2), (0, 2, 1, 2), (2, 1, 0)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", [llama, gpt2, gemma])
def test_a_right_edit_passes(build: object, order: tuple[int, ...]) -> None:
    found = climb(structure, case(order, build()))  # type: ignore[operator]
    assert found.verdict == "passed", found.finding
    assert found.numbers["blocks"] == len(order)
    assert found.finding.startswith(
        "3 blocks, all run" if len(order) == 3 else f"3 blocks became {len(order)}, all run"
    )


@pytest.mark.parametrize("build", [llama, gpt2, gemma])
def test_a_stale_number_is_named(build: object) -> None:
    base = build()  # type: ignore[operator]
    found = climb(structure, case((0, 2), base, after=reordered(base, (0, 2), numbers=False)))
    assert found.verdict == "failed"
    assert found.finding.startswith("block 1 (")
    assert "layer_idx is 2, expected 1" in found.finding


def test_a_shared_module_is_named_with_its_twin() -> None:
    base = gpt2()
    found = climb(structure, case((0, 1, 1, 2), base, after=reordered(base, (0, 1, 1, 2), copies=False)))
    expected = "block 1 (transformer.h.1): attn.layer_idx is 2, expected 1; it is the same module as block 2"
    assert found.finding == expected


def test_blocks_that_do_not_run_are_named() -> None:
    base = llama()
    found = climb(structure, case((0, 1, 2, 1), base, after=reordered(base, (0, 1, 2, 1), depth=False)))
    assert found.finding == "block model.layers.3 is there and does not run: 3 blocks ran of 4"


def test_a_stale_depth_in_the_configuration_is_found() -> None:
    base = gpt2()
    found = climb(structure, case((0, 2), base, after=reordered(base, (0, 2), depth=False)))
    assert found.finding == "the configuration's n_layer is 3, and 2 blocks run"


def test_a_list_that_was_not_remapped_is_found() -> None:
    base = gemma((SLIDING, SLIDING, FULL))
    after = reordered(base, (2, 1, 0))
    after.config.layer_types = [SLIDING, SLIDING, FULL]
    found = climb(structure, case((2, 1, 0), base, after=after))
    assert found.verdict == "failed"
    # The model reads the entry when it runs, so that nothing but the entry is wrong.
    assert found.finding == (
        "the configuration's layer_types says 'sliding_attention' of block 0; its source, block 2, is 'full_attention'"
    )


def test_a_list_of_the_old_length_is_found() -> None:
    base = gemma()
    after = reordered(base, (0, 2))
    after.config.layer_types = [SLIDING, FULL, SLIDING]
    found = climb(structure, case((0, 2), base, after=after))
    assert found.finding == "the configuration's layer_types has 3 items, and 2 blocks run"


def test_a_block_of_another_make_is_named() -> None:
    base = gemma()
    after = reordered(base, (0, 1, 2))
    after.model.layers[1].self_attn.sliding_window = 4
    found = climb(structure, case((0, 1, 2), base, after=after))
    assert found.finding.startswith(
        "block 1 (model.layers.1) is not made as its source, block 1: self_attn.sliding_window"
    )


def test_one_unit_in_the_last_place_is_named() -> None:
    given = case((0, 2))
    nudged(given.after.model.layers[1].mlp.up_proj.weight, 5)
    found = climb(structure, given)
    assert found.verdict == "failed"
    expected = "model.layers.1.mlp.up_proj.weight is not a copy of model.layers.2.mlp.up_proj.weight"
    assert found.finding.startswith(expected)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_weight_outside_the_blocks_that_changed_is_named(name: str) -> None:
    given = case((0, 2))
    nudged(given.after.get_parameter(name))
    assert climb(structure, given).finding.startswith(f"{name} is not a copy of {name}")


def test_weights_may_change_where_the_plan_changes_weights() -> None:
    given = case((0, 2), copies=False)
    nudged(given.after.model.layers[1].mlp.up_proj.weight)
    assert climb(structure, given).verdict == "passed"


def test_another_dtype_is_said() -> None:
    given = case((0, 2))
    given.after.model.norm.half()
    found = climb(structure, given).finding
    assert found == "model.norm.weight is [16] float16, and its source model.norm.weight is [16] float32"


def test_a_weight_without_numbers_is_named() -> None:
    given = case((0, 2))
    given.after.model.layers[1].mlp.to("meta")
    assert climb(structure, given).finding.startswith("model.layers.1.mlp.gate_proj.weight has no numbers")


def test_nan_is_named_unless_the_base_has_it_too() -> None:
    base = llama()
    given = case((0, 2), base, copies=False)
    given.after.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    assert climb(structure, given).finding.startswith("model.layers.1.mlp.up_proj.weight holds NaN")
    base.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    assert climb(structure, case((0, 2), base)).verdict == "passed"


def test_a_model_that_does_not_run_says_why() -> None:
    given = case((0, 2))
    del given.after.model.norm
    found = climb(structure, given)
    assert found.finding.startswith("the new model does not run: AttributeError")
    assert "\n" not in found.finding


def test_another_depth_than_the_plans_is_found() -> None:
    base = llama()
    found = climb(structure, case((0, 1, 2), base, after=reordered(base, (0, 2))))
    assert found.finding == "the new tower runs 2 blocks; the plan makes 3"


# Provenance


def told(given: Case, **changes: object) -> Case:
    """The case with the provenance that an edit would tell."""
    assert given.order is not None
    made = {name: (name,) for name in given.after.state_dict()}
    for name in made:
        if name.startswith("model.layers."):
            j, rest = name.removeprefix("model.layers.").split(".", 1)
            made[name] = (f"model.layers.{given.order[int(j)]}.{rest}",)
    given.provenance = {name: s for name, s in (made | changes).items() if s is not None}  # type: ignore[misc]
    return given


def test_every_tensor_with_its_source_passes() -> None:
    assert climb(structure, told(case((0, 2)))).verdict == "passed"


def test_a_tensor_from_nowhere_is_named() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    assert (
        climb(structure, told(case((0, 2)), **{name: None})).finding
        == f"{name} comes from nowhere: it has no provenance"
    )


def test_a_tensor_that_was_dropped_is_named() -> None:
    found = climb(structure, told(case((0, 2)), **{"model.layers.2.mlp.up_proj.weight": ()}))
    assert found.finding == "model.layers.2.mlp.up_proj.weight was to be made and is not in the new model"


def test_a_source_that_the_base_does_not_have_is_named() -> None:
    found = climb(structure, told(case((0, 2)), **{"model.norm.weight": ("model.layers.7.norm",)}))
    assert found.finding == "model.norm.weight is said to come from model.layers.7.norm, which the base does not have"


def test_names_inside_a_wrapper_count() -> None:
    given = told(case((0, 2)))
    before, after = Wrapper(), Wrapper()
    before.model, after.model = given.before, given.after
    wrapped = Case(before, after, given.inputs, order=(0, 2), copies=True, provenance=given.provenance)
    assert climb(structure, wrapped).verdict == "passed"


# Other towers


def test_a_tower_of_one_block() -> None:
    found = climb(structure, case((1,)))
    assert found.verdict == "passed", found.finding
    assert "3 blocks became 1" in found.finding


def test_what_follows_the_tower_may_have_moved() -> None:
    base, inputs, _ = ZOO["nn.Sequential"]()
    after = nn.Sequential(*list(base)[:3], *list(base)[2:])  # Linear Tanh Linear | Linear | Tanh Linear
    given = Case(base, after, inputs, order=(0, 1, 1, 2), copies=True)
    found = climb(structure, given)
    assert found.verdict == "passed", found.finding
    after[-1] = nn.Linear(WIDTH, 3)
    assert climb(structure, Case(base, after, inputs, order=(0, 1, 1, 2), copies=True)).finding.startswith(
        "5.weight is not"
    )


class Listed(nn.Module):
    """Runs the blocks of a list, or of some of them."""

    def __init__(self, depth: int, runs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual() for _ in range(depth)])
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: self.runs]:
            x = block(x)
        return x


def test_what_the_base_leaves_idle_is_not_blamed() -> None:
    base, inputs = Listed(4, 3), vectors(2, 5, WIDTH)
    assert climb(structure, Case(base, Listed(4, 3), inputs)).verdict == "passed"
    assert "block blocks.3 is there" in climb(structure, Case(Listed(4, 4), Listed(4, 3), inputs)).finding


def test_the_caller_finds_both_models_as_they_were() -> None:
    given = case((0, 2))
    given.after.train()
    before = {name: t.clone() for name, t in given.after.state_dict().items()}
    climb(structure, given)
    assert given.after.training
    assert not given.before.training
    assert all(torch.equal(t, given.after.state_dict()[name]) for name, t in before.items())
    assert given.after(token_ids()).logits.requires_grad
