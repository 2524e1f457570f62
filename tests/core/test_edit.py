"""Plans in memory: the new model computes what the plan says, and the base stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reshaping import answer, close, deep_llama, prepared
from thinned import thinned
from torch import Tensor, nn

from layerwright.core.base import LiveBase
from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.inputs import call
from layerwright.core.plan import Plan
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.core.trace import first_tensor

# Towers whose blocks are members of a list, each run once or all one and the same.
LISTS = [
    "llama", "qwen3", "gemma2", "gemma3", "gpt-neox", "mixtral", "phi", "opt", "bloom", "olmo2", "granite", "gpt2",
    "mamba", "bert", "albert", "t5 decoder", "t5 encoder", "vit", "convnext", "nn.TransformerEncoder",
    "nn.TransformerEncoder, norm first", "nn.Sequential", "own wrapper",
]  # fmt: skip
ORDERS = {"drop": (0, 2), "repeat": (0, 1, 1, 2), "swap": (0, 2, 1)}
PLAIN = [name for name in LISTS if not name.startswith(("t5", "own"))]


def replayed(stack: Stack, inputs: Any, order: tuple[int, ...]) -> Tensor:
    """The base's own blocks, called one after the other in that order."""
    with torch.no_grad():
        replay = Replay(stack, inputs)
        state = replay.states[0]
        for k in order:
            state = replay.block(k, state)
        found = first_tensor(replay.tail(state))
    assert found is not None
    return found


@pytest.mark.parametrize("name, kind", thinned(3, LISTS, ORDERS))
def test_blocks_in_another_order_compute_what_the_base_computes_so(name: str, kind: str) -> None:
    stack, inputs = prepared(name)
    order = ORDERS[kind]
    before = {key: value.clone() for key, value in stack.model.state_dict().items()}
    model, edit = apply(stack, Plan(({"order": list(order)},)), inputs)
    assert edit.order == order
    if name != "own wrapper":  # its bare output hides which part of it is logits
        assert close(answer(model, inputs), replayed(stack, inputs, order))
    inner, base = LiveBase(stack, inputs), stack.model
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in base.parameters()}
    assert set(edit.provenance) <= {key.removeprefix(f"{inner.host}.") for key in model.state_dict()}
    assert all(sources for sources in edit.provenance.values())


def test_a_wrapper_around_a_model_is_kept() -> None:
    stack, inputs = prepared("own wrapper")
    model, _ = apply(stack, Plan(({"insert": [0, 1]},)), inputs)
    assert type(model) is type(stack.model)
    assert model.model.config.num_hidden_layers == 5
    assert stack.model.model.config.num_hidden_layers == 3
    assert close(answer(model, inputs), answer(stack.model, inputs), 1e-6)


@pytest.mark.parametrize(
    "name", [name for name in PLAIN if name not in ("bert", "albert", "nn.TransformerEncoder", "nn.Sequential")]
)
def test_inserted_blocks_change_nothing_and_can_learn(name: str) -> None:
    stack, inputs = prepared(name)
    model, edit = apply(stack, Plan(({"insert": {"after": [0, 2]}},)), inputs)
    assert edit.order == (0, 0, 1, 2, 2)
    assert torch.equal(answer(model, inputs), answer(stack.model, inputs)) or close(
        answer(model, inputs), answer(stack.model, inputs), 1e-6
    )
    zeros = [p for p in model.parameters() if not p.any()]
    first_tensor(call(model, inputs)).square().sum().backward()  # type: ignore[union-attr]
    assert zeros
    assert all(p.grad is not None and p.grad.any() for p in zeros)


@pytest.mark.parametrize("name", ["bert", "nn.TransformerEncoder", "nn.Sequential"])
def test_blocks_that_norm_the_stream_have_no_identity(name: str) -> None:
    stack, inputs = prepared(name)
    with pytest.raises(UserError, match="norms the stream itself"):
        apply(stack, Plan(({"insert": [0]},)), inputs)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "qwen3",
        "gemma2",
        "gemma3",
        "gpt-neox",
        "phi",
        "opt",
        "olmo2",
        "granite",
        "gpt2",
        "bert",
        "vit",
    ],
)
def test_a_wider_feed_forward_part_changes_nothing(name: str) -> None:
    stack, inputs = prepared(name)
    model, _ = apply(stack, Plan(({"widen": {"mlp": "1.5x"}},)), inputs)
    assert close(answer(model, inputs), answer(stack.model, inputs), 1e-6)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, stack.model)]
    assert counts[0] > counts[1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt", "gpt-neox", "mixtral", "phi", "vit", "mamba"])
def test_scales_of_norms_move_into_what_reads_them(name: str) -> None:
    stack, inputs = prepared(name)
    model, _ = apply(stack, Plan(({"fold": {"norms": True}},)), inputs)
    assert close(answer(model, inputs), answer(stack.model, inputs))
    changed = [
        key for key, value in stack.model.state_dict().items()
        if value.ndim == 1 and not torch.equal(value, model.state_dict()[key])
    ]  # fmt: skip
    assert len(changed) >= stack.depth


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt"])
def test_scaled_norms_are_those_of_a_model_that_scales_their_outputs(name: str) -> None:
    stack, inputs = prepared(name)
    model, _ = apply(stack, Plan(({"fold": {"layernorm_scaling": True}},)), inputs)
    base = LiveBase(stack, inputs)
    handles = []
    for k, path in enumerate(base.paths):
        block = stack.model.get_submodule(path)
        for norm in base.anatomy.norms(k):
            module = block.get_submodule(norm.weight.removesuffix(".weight"))
            handles.append(module.register_forward_hook(lambda m, a, out, f=(k + 1) ** -0.5: out * f))
    wanted = answer(stack.model, inputs)
    for handle in handles:
        handle.remove()
    assert close(answer(model, inputs), wanted)
    assert not close(wanted, answer(stack.model, inputs))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi"])
def test_scaled_blocks_add_so_many_times_as_much(name: str) -> None:
    stack, inputs = prepared(name)
    factors = [0.5, 2.0, 0.25]
    model, _ = apply(stack, Plan(({"fold": {"scale": factors}},)), inputs)
    handles = []
    for block, parts, factor in zip(stack.blocks, stack.parts, factors):
        for part in parts:

            def scaled(module: nn.Module, args: Any, out: Any, f: float = factor) -> Any:
                return out * f if isinstance(out, Tensor) else (out[0] * f, *out[1:])

            handles.append(block.get_submodule(part.path).register_forward_hook(scaled))
    wanted = answer(stack.model, inputs)
    for handle in handles:
        handle.remove()
    assert close(answer(model, inputs), wanted)


def test_parts_behind_a_norm_cannot_be_scaled() -> None:
    stack, inputs = prepared("gemma2")
    with pytest.raises(UserError, match="norms what its parts add"):
        apply(stack, Plan(({"fold": {"scale": [0.5] * 3}},)), inputs)


@pytest.mark.parametrize("init", ["average", "stepwise", "lower"])
def test_a_recursive_tower_at_full_rank_is_the_base(init: str) -> None:
    stack, inputs = prepared("llama")
    model, _ = apply(stack, Plan(({"recurse": {"unique": 1, "init": init, "rank": 24}},)), inputs)
    assert close(answer(model, inputs), answer(stack.model, inputs))


def test_what_a_recursive_tower_lacks_falls_with_the_rank() -> None:
    stack, inputs = prepared("llama")
    wanted = stack.model.state_dict()
    errors = []
    for rank in (0, 2, 8, 16):
        model, _ = apply(stack, Plan(({"recurse": {"unique": 1, "rank": rank}},)), inputs)
        made = model.state_dict()
        errors.append(sum(float((made[key] - wanted[key]).square().sum()) for key in wanted))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[1] > errors[2]


def test_low_rank_corrections_are_those_of_the_decomposition() -> None:
    stack, inputs = prepared("llama")
    model, _ = apply(stack, Plan(({"recurse": {"unique": 1, "rank": 3}},)), inputs)
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight"):
        own = [block.get_parameter(name).detach() for block in stack.blocks]
        mean = torch.stack(own).mean(0)
        for k, block in enumerate(model.model.layers):
            u, s, vh = torch.linalg.svd(own[k] - mean)
            correction = sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(3))
            assert torch.allclose(block.get_parameter(name), mean + correction, atol=1e-5)
    assert torch.equal(model.model.layers[1].input_layernorm.weight, stack.blocks[1].input_layernorm.weight)


def test_shared_weights_are_one_parameter_and_copies_are_not() -> None:
    stack, inputs = prepared("llama")
    tied, _ = apply(stack, Plan(({"loop": {"blocks": [1], "times": 2, "share": "weights"}},)), inputs)
    free, _ = apply(stack, Plan(({"loop": {"blocks": [1], "times": 2}},)), inputs)
    assert tied.model.layers[1].mlp.up_proj.weight is tied.model.layers[2].mlp.up_proj.weight
    assert free.model.layers[1].mlp.up_proj.weight is not free.model.layers[2].mlp.up_proj.weight
    assert torch.equal(answer(tied, inputs), answer(free, inputs))
    assert [layer.self_attn.layer_idx for layer in tied.model.layers] == [0, 1, 2, 3]
    recursive, _ = apply(stack, Plan(({"recurse": {"unique": 1, "share": "weights"}},)), inputs)
    first, *others = recursive.model.layers
    assert all(b.mlp.up_proj.weight is first.mlp.up_proj.weight for b in others)
    assert all(b.input_layernorm.weight is not first.input_layernorm.weight for b in others)


# Blocks side by side


def side_by_side(stack: Stack, inputs: Any, size: int) -> Tensor:
    """The base with its blocks run in groups, part by part: parts that are not due give zero."""
    with torch.no_grad():
        replay = Replay(stack, inputs)
        state = replay.states[0]
        for start in range(0, stack.depth, size):
            group = range(start, start + size)
            for role in ("self_attn", "mlp"):
                state = state + torch.stack([alone(stack, replay, k, role, state) for k in group]).sum(0)
        found = first_tensor(replay.tail(state))
    assert found is not None
    return found


def alone(stack: Stack, replay: Replay, k: int, role: str, state: Tensor) -> Tensor:
    """What one part of a block adds to a state."""
    block = stack.blocks[k]
    other = block.mlp if role == "self_attn" else block.self_attn

    def silent(module: nn.Module, args: Any, out: Any) -> Any:
        return torch.zeros_like(out) if isinstance(out, Tensor) else (torch.zeros_like(out[0]), *out[1:])

    handle = other.register_forward_hook(silent)
    try:
        return replay.block(k, state) - state
    finally:
        handle.remove()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_joined_blocks_compute_what_blocks_side_by_side_do(size: int, bias: bool) -> None:
    stack, inputs = deep_llama(attention_bias=bias, mlp_bias=bias)
    model, _ = apply(stack, Plan(({"parallel": {"groups": size}},)), inputs)
    assert close(answer(model, inputs), side_by_side(stack, inputs, size))
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (4 // size, 4 * size)
    assert (config.num_key_value_heads, config.intermediate_size, config.head_dim) == (2 * size, 24 * size, 8)


@pytest.mark.parametrize(
    "name, words",
    [
        ("gpt2", "widens attn.c_attn.weight"),  # its heads have the width between them
        ("qwen3", "differ in self_attn.q_norm.weight"),
        ("mixtral", "experts"),
        ("bert", "widens attention.output.dense.weight"),
    ],
)
def test_blocks_that_cannot_be_joined_say_why(name: str, words: str) -> None:
    stack, inputs = prepared(name)
    with pytest.raises(UserError, match=words):
        apply(stack, Plan(({"order": [0, 1, 2, 2]}, {"parallel": 2})), inputs)


def test_joined_heads_that_the_class_refuses_are_named_with_its_reason() -> None:
    stack, inputs = prepared("llama")
    with pytest.raises(UserError, match=r"num_attention_heads 6 is refused: .* not a multiple .*\(6\)") as error:
        apply(stack, Plan(({"parallel": 3},)), inputs)
    assert "\n" not in str(error.value)


# Bad input


def test_a_plan_for_another_base_is_refused() -> None:
    stack, inputs = prepared("llama")
    own = LiveBase(stack, inputs).fingerprint()
    apply(stack, Plan(({"drop": [0]},), sha256=own), inputs)
    with torch.no_grad():
        stack.blocks[2].mlp.up_proj.weight[0, 0] += 1.0
    with pytest.raises(UserError, match="the plan is for the model"):
        apply(stack, Plan(({"drop": [0]},), sha256=own), inputs)


@pytest.mark.parametrize(
    "steps, words",
    [
        (({"drop": [7]},), r"got block 7.*step 1 of the plan"),
        (({"drop": "0:3"},), "leaves no block"),
        (({"drop": [0]}, {"drop": [2]}), r"got block 2; there are 2.*step 2"),
        (({"recurse": {"unique": 2}},), "divisor of the depth 3"),
        (({"recurse": {"unique": 1, "rank": 2, "share": "weights"}},), "corrections differ"),
        (({"recurse": {"unique": 1, "init": "best"}},), "average or stepwise or lower"),
        (({"parallel": 2},), "divisor of the depth 3"),
        (({"widen": 1.0},), "larger than 1"),
        (({"fold": {"norms": True, "layernorm_scaling": True}},), "expected one of"),
        (({"fold": {"scale": [1.0]}},), "a list of 3 numbers"),
        (({"insert": [0, 0]},), "block 0 twice"),
    ],
)
def test_plans_that_cannot_be_done_name_the_step(steps: Any, words: str) -> None:
    stack, inputs = prepared("llama")
    with pytest.raises(UserError, match=words):
        apply(stack, Plan(steps), inputs)


def test_kinds_of_blocks_that_no_configuration_orders_so() -> None:
    stack, inputs = prepared("t5 decoder")
    with pytest.raises(UserError, match="relative_attention_bias"):
        apply(stack, Plan(({"drop": [0]},)), inputs)
    stack, inputs = prepared("swin")
    with pytest.raises(UserError, match="shift_size"):
        apply(stack, Plan(({"order": [0, 0]},)), inputs)


def test_towers_that_are_no_list_are_refused() -> None:
    for name in ("layer1..layer4", "looped core"):
        stack, inputs = prepared(name)
        with pytest.raises(UserError, match="not the members of one list"):
            apply(stack, Plan(({"drop": [1]},)), inputs)


def test_adapters_must_be_merged_first() -> None:
    stack, inputs = prepared("peft")
    with pytest.raises(UserError, match="merge them first"):
        apply(stack, Plan(({"drop": [1]},)), inputs)


def test_one_block_that_runs_often_cannot_differ_from_run_to_run() -> None:
    stack, inputs = prepared("albert")
    with pytest.raises(UserError, match="runs several times"):
        apply(stack, Plan(({"recurse": {"unique": 1, "rank": 99}},)), inputs)


def test_quantized_weights_are_refused() -> None:
    stack, inputs = prepared("llama")
    stack.model.hf_quantizer = object()
    with pytest.raises(UserError, match="quantized"):
        apply(stack, Plan(({"drop": [1]},)), inputs)


# Fitted blocks


def test_a_fitted_block_is_the_least_squares_solution() -> None:
    stack, inputs = prepared("llama")
    batch = {"input_ids": torch.randint(0, 40, (16, 12), generator=torch.Generator().manual_seed(5))}
    model, edit = apply(stack, Plan(({"heal": {"blocks": "0:2"}},)), inputs, [batch])
    assert edit.order == (0, 2)
    block, replay = stack.blocks[0], Replay(stack, batch)
    read: list[Tensor] = []
    handle = block.mlp.down_proj.register_forward_pre_hook(lambda m, args: read.append(args[0].double().flatten(0, 1)))
    with torch.no_grad():
        whole = replay.block(0, replay.states[0]).double().flatten(0, 1)
        handle.remove()
        own = block.mlp.down_proj.weight.double()
        target = replay.states[2].double().flatten(0, 1) - (whole - read[0] @ own.T)
        ridge = 1e-4 * read[0].square().sum(0).mean() * torch.eye(own.shape[1], dtype=torch.double)
        z = torch.cat([read[0], ridge.sqrt()])
        wanted = torch.linalg.lstsq(z, torch.cat([target, ridge.sqrt() @ own.T])).solution.T
    assert torch.allclose(model.model.layers[0].mlp.down_proj.weight.double(), wanted, atol=1e-4)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, block.mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "opt"])
def test_a_fitted_block_is_nearer_to_the_stretch_than_a_block_that_only_stays(name: str) -> None:
    stack, inputs = prepared(name)
    batch = {"input_ids": torch.randint(0, 40, (32, 12), generator=torch.Generator().manual_seed(5))}
    wanted = answer(stack.model, batch)
    healed, _ = apply(stack, Plan(({"heal": {"blocks": "1:3", "by": 1}},)), inputs, [batch])
    dropped, _ = apply(stack, Plan(({"drop": [2]},)), inputs)
    errors = [float((answer(model, batch) - wanted).square().mean()) for model in (healed, dropped)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "steps, words",
    [
        (({"heal": {"blocks": [1]}},), "at least two blocks"),
        (({"heal": {"blocks": "0:2", "by": 2}},), "a block of the stretch 0 to 1"),
        (({"stack": 2}, {"heal": {"blocks": "2:4"}}), "heal before other steps"),
    ],
)
def test_stretches_that_cannot_be_healed(steps: Any, words: str) -> None:
    stack, inputs = prepared("llama")
    with pytest.raises(UserError, match=words):
        apply(stack, Plan(steps), inputs, [inputs])


def test_a_fit_needs_data() -> None:
    stack, inputs = prepared("llama")
    with pytest.raises(UserError, match="no data to fit on"):
        apply(stack, Plan(({"heal": {"blocks": "0:2"}},)), inputs)
