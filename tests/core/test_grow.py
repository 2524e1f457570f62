"""Growth in depth: what each operator computes, what it leaves of the function, where its random numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reshaping import answer, close, prepared
from thinned import thinned

from layerwright.core.edit import apply, apply_stored
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.inputs import call
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan
from layerwright.core.rungs.answers import preserved
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.starts import starts
from layerwright.core.steps import grow
from layerwright.core.trace import first_tensor

PRE_NORM = ["llama", "qwen3", "gemma3", "gpt2", "opt", "gpt-neox", "mixtral", "phi", "mamba", "vit"]
# What is learned has a file of its own, test_grow_learn.py.
PRESERVES = {by: kept for by, kept in grow.PRESERVES["depth"].items() if by != "learn"}
RANDOM = [*PRE_NORM, "bert", "convnext", "nn.TransformerEncoder", "own wrapper"]


def grown(name: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    stack, inputs = prepared(name)
    model, edit = apply(stack, Plan(({"grow": options},)), inputs)
    return model, stack, inputs, edit


@pytest.mark.parametrize(
    "order, places",
    [("stack", (0, 1, 2, 0, 1, 2, 0, 1, 2)), ("split", (0, 0, 0, 1, 1, 1, 2, 2, 2))],
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "nn.Sequential"])
def test_direct_growth_copies_the_tower_or_each_block(name: str, order: str, places: tuple[int, ...]) -> None:
    model, stack, inputs, edit = grown(name, depth=3, order=order)
    wanted, _ = apply(stack, Plan(({"order": list(places)},)), inputs)
    assert edit.order == places
    assert torch.equal(answer(model, inputs), answer(wanted, inputs))


@pytest.mark.parametrize("name, order", thinned(2, PRE_NORM, ["stack", "split"]))
def test_growth_by_silent_blocks_changes_nothing_and_they_can_learn(name: str, order: str) -> None:
    model, stack, inputs, edit = grown(name, depth=2, by="zero", order=order)
    assert len(edit.order) == 6
    assert close(answer(model, inputs), answer(stack.model, inputs), 1e-6)
    zeros = [p for p in model.parameters() if not p.any()]
    first_tensor(call(model, inputs)).square().sum().backward()  # type: ignore[union-attr]
    assert len(zeros) >= 3
    assert all(p.grad is not None and p.grad.any() for p in zeros)


@pytest.mark.parametrize("by", PRESERVES)
def test_what_each_operator_says_of_the_function_is_measured(by: str) -> None:
    model, stack, inputs, _ = grown("llama", depth=2, by=by)
    with torch.no_grad():
        found = preserved(stack.model, model, inputs, step="grow", declared=PRESERVES[by])
    assert found.held == (PRESERVES[by] == "exact")
    assert found.held or found.max_error > 0.1


@pytest.mark.parametrize("name, order", thinned(2, RANDOM, ["stack", "split"]))
def test_fresh_blocks_stand_beside_those_of_the_base(name: str, order: str) -> None:
    model, stack, inputs, edit = grown(name, depth=2, by="random", order=order)
    kept = [0, 1, 2] if order == "stack" else [0, 2, 4]
    made, base = model.state_dict(), stack.model.state_dict()
    parent = stack.tower.block_paths[0].rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    changed = 0
    for key, source in ((k, edit.order[k]) for k in range(6)):
        for own in (n.removeprefix(f"{prefix}{source}.") for n in base if n.startswith(f"{prefix}{source}.")):
            same = torch.equal(made[f"{prefix}{key}.{own}"], base[f"{prefix}{source}.{own}"])
            assert same or key not in kept
            changed += not same
    assert changed >= 3
    assert answer(model, inputs).isfinite().all()


@pytest.mark.parametrize("kind", [transformers.LlamaConfig, transformers.GPT2Config])
def test_fresh_weights_are_as_the_class_starts_them(kind: Any) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 40}
    config = kind(**sizes, initializer_range=0.5, bos_token_id=0, eos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base, other = (transformers.AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    with torch.no_grad():
        for p in base.parameters():
            p.add_(3.0)
    model, _ = apply(Stack.find(base, inputs), Plan(({"grow": {"depth": 2, "by": "random"}},)), inputs)
    fresh, wanted = model.get_submodule(_third(model)), other.get_submodule(_third(model).replace("2", "1"))
    for name, p in wanted.state_dict().items():
        made = fresh.state_dict()[name]
        if p.std() == 0:
            assert torch.equal(made, p), name
        else:
            assert abs(float(made.std() / p.std()) - 1) < 0.05, name
            assert abs(float(made.mean())) < 0.1 * float(p.std()), name


def _third(model: Any) -> str:
    return next(path for path, _ in model.named_modules() if path.endswith(".2"))


def test_random_numbers_come_from_the_seed_and_no_tensor_of_the_base() -> None:
    first, _, _, edit = grown("llama", depth=3, by="random")
    again, _, _, _ = grown("llama", depth=3, by="random", seed=0)
    other, _, _, _ = grown("llama", depth=3, by="random", seed=1)
    name = "model.layers.{}.mlp.up_proj.weight"
    pick = [[m.state_dict()[name.format(k)] for k in (3, 6)] for m in (first, again, other)]
    assert torch.equal(pick[0][0], pick[1][0])
    assert not torch.equal(pick[0][0], pick[2][0])
    assert not torch.equal(pick[0][0], pick[0][1])
    assert edit.provenance[name.format(4)] == ()
    assert edit.provenance[name.format(1)] == (name.format(1),)


def test_the_random_state_and_the_base_stay_as_they_are() -> None:
    stack, inputs = prepared("gpt2")
    before, state = {k: t.clone() for k, t in stack.model.state_dict().items()}, torch.random.get_rng_state()
    starts(stack.blocks[0], stack.model)
    apply(stack, Plan(({"grow": {"depth": 2, "by": "random"}},)), inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[k]) for k, t in stack.model.state_dict().items())


@pytest.mark.parametrize("name, by", thinned(2, ["llama", "gpt2", "gemma3"], PRESERVES))
def test_the_folder_holds_what_memory_would(name: str, by: str, tmp_path: Path) -> None:
    model, stack, inputs, edit = grown(name, depth=2, by=by, order="split")
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    stored = apply_stored(Skeleton.load(tmp_path / "base")[0], edit.plan, tmp_path / "new")
    assert stored.order == edit.order
    assert torch.equal(answer(load_model(tmp_path / "new")[0], inputs), answer(model, inputs))


def test_kinds_of_blocks_stay_with_their_places() -> None:
    model, stack, _, edit = grown("gemma3", depth=2, by="random", order="split")
    types = stack.model.config.layer_types
    assert model.config.layer_types == [types[k] for k in edit.order]


# Bad input


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("llama", {"depth": 1}, "expected one of them above 1"),
        ("llama", {"depth": 0}, "at least 1"),
        ("llama", {"depth": 2, "by": "copy"}, "direct or zero or random or learn"),
        ("llama", {"depth": 2, "order": "mixed"}, "stack or split"),
        ("bert", {"depth": 2, "by": "zero"}, "norms the stream itself"),
    ],
)
def test_growth_that_cannot_be_done_says_why(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        grown(name, **options)


def test_weights_that_nothing_starts_are_named() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4))

    block = Own()
    with pytest.raises(UserError, match="nothing starts scale of Own"):
        starts(block, torch.nn.Sequential(block))


def test_fresh_blocks_of_joined_files_need_the_model(tmp_path: Path) -> None:
    stack, _ = prepared("mixtral")
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    (tmp_path / "new").mkdir()
    with pytest.raises(NeedsModel, match="a fresh block"):
        apply_stored(
            Skeleton.load(tmp_path / "base")[0], Plan(({"grow": {"depth": 2, "by": "random"}},)), tmp_path / "new"
        )


def test_fresh_blocks_after_wider_ones_are_refused() -> None:
    stack, inputs = prepared("gpt2")
    with pytest.raises(UserError, match=r"another shape than in the base.*step 2"):
        apply(stack, Plan(({"widen": 2}, {"grow": {"depth": 2, "by": "random"}})), inputs)
