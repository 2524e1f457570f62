from __future__ import annotations

from itertools import chain, combinations, pairwise

import pandas as pd
import pytest
import torch
from naive import blocks_of, first, stream
from torch import Tensor, nn
from zoo import ZOO, gpt2, llama, token_ids, vectors

from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.paths import Paths
from layerwright.core.plan import Plan
from layerwright.core.stack import Stack
from layerwright.edits.parallel_pairs import disjoint, parallel_pairs, side_by_side


def planned(model: nn.Module, inputs: object, **options: float) -> tuple[Plan, pd.DataFrame]:
    kept: dict[str, pd.DataFrame] = {}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        plan = parallel_pairs(paths, kept.__setitem__, **options)
    return plan, kept["parallel_pairs"]


def test_each_part_of_both_blocks_reads_the_same_stream() -> None:
    """h + A₁(h) + A₂(h), then h + M₁(h) + M₂(h), with the modules of a GPT-2 called by hand."""
    model, ids = gpt2(num_hidden_layers=4), token_ids()
    h, _, _ = stream(model, ids)
    inputs = {"input_ids": ids}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        for k in range(3):
            one, two = blocks_of(model)[k], blocks_of(model)[k + 1]
            x = h[k]
            x = x + first(one.attn(one.ln_1(x))) + first(two.attn(two.ln_1(x)))
            x = x + one.mlp(one.ln_2(x)) + two.mlp(two.ln_2(x))
            torch.testing.assert_close(side_by_side(paths.runs[0], k, h[k]), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt-neox", "phi"])
def test_blocks_whose_parts_are_parallel_already_add_up(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        run, states = paths.runs[0], paths.states(paths.whole, 0)
        expected = states[1] + run.replay.block(1, states[0]) - states[0]
        torch.testing.assert_close(side_by_side(run, 0, states[0]), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "granite", "opt", "vit"])
def test_a_block_beside_a_silent_one_is_itself(name: str) -> None:
    """Block 0 is asked to stand beside a copy of itself whose last weights are zero: both orders give block 0 alone."""
    model, inputs, _ = ZOO[name]()
    stack = Stack.find(model, inputs)
    for key, p in stack.blocks[1].named_parameters():
        if p.ndim > 1 or key.endswith("bias"):
            nn.init.zeros_(p)
    with Paths(stack, [inputs]) as paths:
        run, states = paths.runs[0], paths.states(paths.whole, 0)
        torch.testing.assert_close(states[2], states[1])
        torch.testing.assert_close(side_by_side(run, 0, states[0]), states[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(side_by_side(run, 1, states[1]), states[3], rtol=1e-5, atol=1e-5)


def test_the_error_is_relative_to_the_stream_and_padding_is_left_out() -> None:
    model, ids, mask = llama(num_hidden_layers=4), token_ids(3), torch.ones(3, 12, dtype=torch.long)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    _, frame = planned(model, inputs, share=10.0)
    h, _, _ = stream(model, ids, attention_mask=mask)
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        for k in range(3):
            beside = side_by_side(paths.runs[0], k, h[k])
            gap = (beside - h[k + 2]).norm(dim=-1)[mask.bool()]
            error = (gap / h[k + 2].norm(dim=-1)[mask.bool()]).mean().item()
            share = (gap / (h[k + 2] - h[k]).norm(dim=-1)[mask.bool()]).mean().item()
            assert frame["value"][k] == pytest.approx(error, rel=1e-4)
            assert frame["share"][k] == pytest.approx(share, rel=1e-4)


def test_constant_blocks_have_no_second_order() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2))
    for layer in model[:4]:
        nn.init.eye_(layer.weight)
    plan, frame = planned(model, {"input": vectors(5, 8)})
    assert frame["value"].tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert plan.steps == ({"parallel": {"groups": 2}},)
    assert "4 blocks become 2 steps" in plan.why


def test_linear_blocks_have_the_second_order_of_their_product() -> None:
    """(1 + B)(1 + A) − (1 + A + B) = B·A."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)), nn.Linear(8, 2)).double()
    parts = [0.3 * torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    for layer, part in zip(model, parts):
        layer.weight.data = torch.eye(8, dtype=torch.float64) + part
    x = vectors(5, 8).double()
    _, frame = planned(model, {"input": x}, share=10.0)
    second = (x @ parts[0].T @ parts[1].T).norm(dim=-1)
    after = (x @ model[0].weight.T @ model[1].weight.T).norm(dim=-1)
    assert frame["value"][0] == pytest.approx((second / after).mean().item(), rel=1e-6)


def test_a_block_that_stays_alone_gets_a_silent_one_beside_it() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 2))
    for k in (0, 1, 3, 4):
        nn.init.eye_(model[k].weight)
    for k in (2, 3):
        nn.init.constant_(model[k].weight, 2.0)
    plan, _ = planned(model, {"input": vectors(5, 8)}, share=1e-5)
    assert plan.steps == ({"insert": {"after": [2]}}, {"parallel": {"groups": 2}})
    assert "each of the pairs 0 and 1, 3 and 4" in plan.why
    assert "5 blocks become 3 steps" in plan.why


def test_pairs_are_the_most_and_of_those_the_cheapest() -> None:
    """Against all subsets of disjoint pairs."""
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 9):
        for most in (0.2, 0.5, 1.0):
            errors = torch.rand(size, generator=generator).tolist()
            allowed = [k for k in range(size) if errors[k] <= most]
            sets = chain.from_iterable(combinations(allowed, n) for n in range(size + 1))
            apart = [s for s in sets if all(b - a > 1 for a, b in pairwise(s))]
            best = max(apart, key=lambda s: (len(s), -sum(errors[k] for k in s)))
            assert disjoint(errors, most) == list(best)


def test_what_is_measured_is_what_the_plan_makes() -> None:
    """The stream after the first of two wide blocks is the one measured for the first pair."""
    model, inputs = llama(num_hidden_layers=4), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    plan, _ = planned(model, inputs, share=10.0)
    with Paths(stack, [inputs]) as paths:
        expected = side_by_side(paths.runs[0], 0, paths.runs[0].bottom)
    wide, _ = apply(stack, plan, inputs)
    with Paths(Stack.find(wide, inputs), [inputs]) as paths:
        assert paths.depth == 2
        torch.testing.assert_close(paths.states((0,), 0)[1], expected, rtol=1e-5, atol=1e-5)


def test_a_plan_with_a_silent_block_changes_no_more_than_its_pairs() -> None:
    """Blocks 0 and 1 stand alone, 2 and 3 side by side: the rest of the stream is as it was."""
    model, inputs = llama(num_hidden_layers=4), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    wide, _ = apply(stack, Plan(({"insert": {"after": [0, 1]}}, {"parallel": {"groups": 2}})), inputs)
    with Paths(stack, [inputs]) as paths:
        states = paths.states(paths.whole, 0)
        expected = [*states[:3], side_by_side(paths.runs[0], 2, states[2])]
    with Paths(Stack.find(wide, inputs), [inputs]) as paths:
        for found, state in zip(paths.states(paths.whole, 0), expected, strict=True):
            torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-5)


def test_where_no_pair_will_do_the_least_is_named() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    with pytest.raises(UserError, match=r"at most 1e-06; the least is 0\.\d+, of blocks \d and \d; give a larger"):
        planned(model, inputs, share=1e-6)
    with pytest.raises(UserError, match="got share -1"):
        planned(model, inputs, share=-1)


def test_hooks_are_gone() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    planned(model, inputs, share=10.0)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_state_is_not_changed() -> None:
    model, inputs = gpt2(), {"input_ids": token_ids()}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        state: Tensor = paths.runs[0].bottom
        before = state.clone()
        side_by_side(paths.runs[0], 0, state)
        assert torch.equal(state, before)
