"""Growth by mixtures of all blocks: the plan's numbers times the base's weights, and copies where a mixture is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reshaping import answer, deep_llama, prepared
from torch import Tensor, nn
from zoo import ZOO, token_ids

from layerwright.core.base import LiveBase
from layerwright.core.climb import Wish
from layerwright.core.edit import apply, apply_stored, done
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.load import load_model, quietly
from layerwright.core.mixing import stacking
from layerwright.core.plan import Plan
from layerwright.core.reshape import reshape_live
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack

Q, UP = "self_attn.q_proj.weight", "mlp.up_proj.weight"
EYE = stacking(3, 2).tolist()


def learned(mix: Any, **options: Any) -> Plan:
    return Plan(({"grow": {"depth": 2, "by": "learn", "mix": mix, **options}},))


def matrix(seed: int, depth: int = 3, times: int = 2) -> list[list[float]]:
    """Numbers without zeros or ones."""
    drawn = torch.rand(times * depth, depth, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (stacking(depth, times) + 0.1 + 0.4 * drawn).tolist()


def below(model: nn.Module, k: int) -> dict[str, Tensor]:
    """The weights of a block of a Llama or a GPT-2."""
    path = f"model.layers.{k}" if hasattr(model, "model") else f"transformer.h.{k}"
    return dict(model.get_submodule(path).state_dict())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_weight_is_the_sum_of_all_blocks_times_their_numbers(name: str) -> None:
    stack, inputs = prepared(name)
    own = UP if name == "llama" else "mlp.c_fc.bias"
    mix = {"all": matrix(1), own: matrix(2)}
    model, edit = apply(stack, learned(mix), inputs)
    wanted, _ = apply(stack, Plan(({"stack": 2},)), inputs)
    with torch.no_grad():
        for j in range(6):
            for key, weight in below(wanted, j).items():
                row = mix[own if key == own else "all"][j]
                weight.copy_(sum(f * below(stack.model, k)[key].double() for k, f in enumerate(row)))
                torch.testing.assert_close(below(model, j)[key], weight, rtol=1e-6, atol=1e-6)
    assert edit.order == (0, 1, 2, 0, 1, 2)
    torch.testing.assert_close(answer(model, inputs), answer(wanted, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral", "phi", "bert", "vit", "nn.Sequential"])
def test_rows_with_a_single_one_are_stacking_bit_for_bit(name: str) -> None:
    stack, inputs = prepared(name)
    model, edit = apply(stack, learned({"all": EYE}), inputs)
    wanted, stacked = apply(stack, Plan(({"stack": 2},)), inputs)
    assert edit.provenance == stacked.provenance
    assert edit.order == stacked.order
    for key, weight in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key
    assert torch.equal(answer(model, inputs), answer(wanted, inputs))


def test_such_rows_are_copies_of_whichever_block_they_name() -> None:
    stack, inputs = prepared("llama")
    backwards = [row[::-1] for row in EYE]
    draft = done(learned({"all": backwards}), LiveBase(stack, inputs).draft())
    for j, block in enumerate(draft.blocks):
        for name, weight in block.weights.items():
            assert weight.copy
            assert weight.sources() == {f"model.layers.{2 - j % 3}.{name}"}


@pytest.mark.parametrize("order, places", [("stack", (0, 1, 2, 0, 1, 2)), ("split", (0, 0, 1, 1, 2, 2))])
def test_a_weight_without_a_matrix_is_copied_as_by_direct(order: str, places: tuple[int, ...]) -> None:
    stack, inputs = prepared("llama")
    model, edit = apply(stack, learned({Q: matrix(0)}, order=order), inputs)
    wanted, _ = apply(stack, Plan(({"grow": {"depth": 2, "order": order}},)), inputs)
    assert edit.order == places
    for key, weight in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight) != key.endswith(Q), key


def test_where_a_weight_comes_from_is_told() -> None:
    stack, inputs = prepared("llama")
    rows = [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 2.0], [0, 1.0, -1e-6], [0, 0, 1], [0.0, 0, 0]]
    model, edit = apply(stack, learned({Q: rows}), inputs)
    name = f"model.layers.{{}}.{Q}"
    wanted = [[0], [0, 2], [2], [1, 2], [2], [2]]
    assert [edit.provenance[name.format(j)] for j in range(6)] == [tuple(map(name.format, ks)) for ks in wanted]
    assert edit.provenance[f"model.layers.4.{UP}"] == (f"model.layers.1.{UP}",)
    new = [below(model, j)[Q] for j in range(6)]
    assert torch.equal(new[2], 2 * below(stack.model, 2)[Q])
    assert not new[5].any()


def test_a_step_before_changes_what_is_mixed() -> None:
    """Of two blocks that are left, the matrices have two columns."""
    stack, inputs = prepared("gpt2")
    model, edit = apply(stack, Plan(({"drop": [1]}, *learned({"all": [[0.5, 0.5]] * 4}).steps)), inputs)
    assert edit.order == (0, 2, 0, 2)
    for key, weight in below(model, 3).items():
        torch.testing.assert_close(weight, (below(stack.model, 0)[key] + below(stack.model, 2)[key]) / 2)


def test_half_precision_is_mixed_in_float32() -> None:
    stack, inputs = prepared("llama")
    stack.model.to(torch.bfloat16)
    model, _ = apply(stack, learned({"all": matrix(0)}), inputs)
    weights = [below(stack.model, k)[UP].float() for k in range(3)]
    wanted = sum(f * w for f, w in zip(matrix(0)[4], weights))
    assert torch.equal(below(model, 4)[UP], wanted.bfloat16())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_the_folder_holds_what_memory_would(name: str, tmp_path: Path) -> None:
    stack, inputs = prepared(name)
    plan = learned({"all": [*EYE[:3], *matrix(0)[3:]]})
    model, edit = apply(stack, plan, inputs)
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    stored = apply_stored(Skeleton.load(tmp_path / "base")[0], plan, tmp_path / "new")
    assert stored.order == edit.order
    made = load_model(tmp_path / "new")[0]
    for key, weight in model.state_dict().items():
        assert torch.equal(made.state_dict()[key], weight), key
    assert torch.equal(answer(made, inputs), answer(model, inputs))


def test_kinds_of_blocks_stay_with_their_places() -> None:
    stack, inputs = prepared("gemma3")
    model, edit = apply(stack, learned({"all": matrix(0)}), inputs)
    types = stack.model.config.layer_types
    assert model.config.layer_types == [types[k] for k in edit.order]


def test_the_ladder_holds_for_a_mixture() -> None:
    """As many blocks as are declared, all run, decoding from a cache equals the full pass."""
    stack, _ = deep_llama()
    wish = Wish(learned({"all": [[0.75, 0, 0, 0.25]] * 8}), until="decode")
    model, result = reshape_live(stack.model, wish, "tiny")
    assert result.ok
    assert model.config.num_hidden_layers == 8


def test_copies_of_shared_weights_stay_shared() -> None:
    stack, inputs = prepared("llama")
    loop = {"loop": {"blocks": "0:1", "times": 2, "share": "weights"}}
    mix = {"all": stacking(4, 2).tolist(), UP: matrix(0, 4)}
    model, _ = apply(stack, Plan((loop, *learned(mix).steps)), inputs)
    blocks = model.model.layers
    assert blocks[0].self_attn.q_proj.weight is blocks[5].self_attn.q_proj.weight
    assert blocks[0].mlp.up_proj.weight is not blocks[1].mlp.up_proj.weight
    assert blocks[2].self_attn.q_proj.weight is not blocks[6].self_attn.q_proj.weight


def test_the_base_stays_as_it_is() -> None:
    stack, inputs = prepared("gpt2")
    before = {key: weight.clone() for key, weight in stack.model.state_dict().items()}
    apply(stack, learned({"all": matrix(0)}), inputs)
    assert all(torch.equal(weight, before[key]) for key, weight in stack.model.state_dict().items())


# Weights that are no sums


class Counted(nn.Module):
    """A block with a count of the batches it has seen."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.BatchNorm1d(4), nn.Linear(4, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(self.norm(x)).tanh())


def tower(*hidden: int) -> tuple[Stack, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*map(Counted, hidden), nn.Linear(4, 3)).eval()
    for k, block in enumerate(model[:-1]):
        block.norm.num_batches_tracked.fill_(k + 5)
    return Stack.find(model, torch.ones(3, 4)), torch.ones(3, 4)


def test_whole_numbers_are_copied() -> None:
    stack, inputs = tower(8, 8)
    model, _ = apply(stack, learned({"all": matrix(0, 2)}), inputs)
    assert [int(model[j].norm.num_batches_tracked) for j in range(4)] == [5, 6, 5, 6]
    variance = [stack.model[k].norm.running_var for k in range(2)]
    torch.testing.assert_close(model[3].norm.running_var, sum(f * v for f, v in zip(matrix(0, 2)[3], variance)))
    with pytest.raises(UserError, match=r"'norm.num_batches_tracked', which holds whole numbers"):
        apply(stack, learned({"norm.num_batches_tracked": matrix(0, 2)}), inputs)


def test_blocks_of_different_shapes_are_not_mixed() -> None:
    stack, inputs = tower(8, 6)
    with pytest.raises(UserError, match=r"block 1 holds no inner.weight of the shape \[8, 4\].*blocks of one make"):
        apply(stack, learned({"inner.weight": matrix(0, 2)}), inputs)
    model, _ = apply(stack, learned({"outer.bias": matrix(0, 2)}), inputs)
    assert torch.equal(model[3].inner.weight, stack.model[1].inner.weight)
    assert not torch.equal(model[3].outer.bias, stack.model[1].outer.bias)


def test_one_block_that_runs_several_times_is_not_mixed() -> None:
    stack, inputs = prepared("albert")
    with pytest.raises(UserError, match="cannot differ from run to run"):
        apply(stack, learned({"all": matrix(0, 4)}), inputs)


def test_a_weight_that_files_hold_in_parts_needs_the_model(tmp_path: Path) -> None:
    stack, _ = prepared("mixtral")
    name = next(name for name in below(stack.model, 0) if "experts" in name)
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    with pytest.raises(NeedsModel, match=f"{name}, which is stored in another form, needs the loaded model"):
        apply_stored(Skeleton.load(tmp_path / "base")[0], learned({name: matrix(0)}), tmp_path / "new")


# Bad input


@pytest.mark.parametrize(
    "options, words",
    [
        ({"mix": None}, "got by: learn without matrices"),
        ({"mix": {}}, "got by: learn without matrices"),
        ({"mix": EYE}, "got by: learn without matrices"),
        ({"by": "direct"}, "got mix with by: direct; expected by: learn"),
        ({"width": 2}, "got width 2 with by: learn; expected depth alone: .* as large as the weights"),
        ({"depth": 1}, "expected one of them above 1"),
        ({"mix": {"self_attn.q_proj": EYE}}, "'self_attn.q_proj', which no block holds; did you mean 'self_attn.q_pro"),
        ({"mix": {3: EYE}}, "mix names 3, which no block holds"),
        ({"mix": {"all": EYE[:4]}}, "got 4 rows of 3 numbers as the mix of all; expected 6 lists"),
        ({"mix": {"all": [row[:2] for row in EYE]}}, "6 rows of 2 numbers .* of 3 numbers, one for each old block"),
        ({"mix": {"all": [[1, 0], *EYE[1:]]}}, "6 rows of 2 or 3 numbers"),
        ({"mix": {"all": []}}, "got 0 rows"),
        ({"mix": {"all": 1.0}}, "got float as the mix of all"),
        ({"mix": {Q: [1.0] * 6}}, f"got list as the mix of {Q}"),
        ({"mix": {"all": [[float("nan"), 0, 0], *EYE[1:]]}}, "got nan in the mix of all; expected a finite number"),
        ({"mix": {"all": [[float("inf"), 0, 0], *EYE[1:]]}}, "got inf in the mix"),
        ({"mix": {"all": [[10**400, 0, 0], *EYE[1:]]}}, "got 1000.* expected a finite number"),
        ({"mix": {"all": [["1e-3", 0, 0], *EYE[1:]]}}, "got '1e-3' in the mix"),
        ({"mix": {"all": [[True, 0, 0], *EYE[1:]]}}, "got True in the mix"),
    ],
)
def test_mixtures_that_cannot_be_say_why(options: dict[str, Any], words: str) -> None:
    model, inputs, _ = ZOO["llama"]()
    plan = Plan(({"grow": {"depth": 2, "by": "learn", "mix": {"all": EYE}} | options},))
    with pytest.raises(UserError, match=words) as caught:
        apply(Stack.find(model, inputs), plan, {"input_ids": token_ids()})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("step grow: ")


def test_a_plan_with_mixtures_goes_through_yaml() -> None:
    plan = learned({"all": matrix(0), Q: [[1e-7, -2.5e-12, 0], *EYE[1:]]})
    assert Plan.from_yaml(plan.to_yaml()) == plan
