"""Growth by mixtures that are learned: the loss and its gradient against models built from plans, and what is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from naive import forward
from naive import loss as nats
from test_cli import run
from torch import Tensor, nn
from zoo import ZOO, ConvNet, gpt2, llama, pixels, token_ids, vectors

from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.mixing import Mixing, stacking
from layerwright.core.paths import Paths
from layerwright.core.plan import _LONGEST, Plan
from layerwright.core.planner import plan_with
from layerwright.core.stack import Stack
from layerwright.edits.learned_growth import learned_growth

INPUTS = {"input_ids": token_ids(6)}
ALIKE = {"input_ids": token_ids(1).repeat(6, 1)}  # what is learned on one half holds on the other
UNEVEN = [{"input_ids": token_ids(n, seed=n)} for n in (3, 1, 2)]


@contextmanager
def mixing_of(model: nn.Module, batches: list[Any], **options: Any) -> Iterator[Mixing]:
    with Paths(Stack.find(model, batches[0]), batches, **options) as paths, Mixing(paths) as mixing:
        yield mixing


def planned(model: nn.Module, batches: Any = (ALIKE,), **options: Any) -> tuple[Plan, pd.DataFrame]:
    kept: dict[str, pd.DataFrame] = {}
    seed = options.pop("seed", 0)
    stack = Stack.find(model, batches[0])
    plan = plan_with("learned_growth", stack, batches=batches, options=options, seed=seed, keep=kept.__setitem__)
    return plan, kept["learned_growth"]


def numbers(kinds: tuple[str, ...], depth: int = 3, scale: float = 0.1) -> dict[str, Tensor]:
    """Matrices around stacking, one for each kind."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2 * depth, depth, generator=generator, dtype=torch.float64) for _ in kinds]
    return {kind: stacking(depth, 2) + scale * x for kind, x in zip(kinds, noise)}


def grown(model: nn.Module, inputs: Any, mix: dict[str, Tensor]) -> nn.Module:
    """The model that a plan with these matrices makes."""
    step = {"depth": 2, "by": "learn", "mix": {kind: matrix.tolist() for kind, matrix in mix.items()}}
    return apply(Stack.find(model, inputs), Plan(({"grow": step},)), inputs)[0]


# The loss of a mixture


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3", "mixtral", "phi", "opt", "gpt-neox", "granite"])
def test_the_loss_is_that_of_the_model_made_from_the_plan(name: str) -> None:
    model, _, _ = ZOO[name]()
    with mixing_of(model.eval(), [INPUTS]) as mixing:
        mix = numbers(mixing.kinds)
        held, learn = mixing.losses(mix), mixing.loss(mix, 0)
    logits, ids = forward(grown(model, INPUTS, mix), INPUTS["input_ids"]), INPUTS["input_ids"]
    wanted = torch.stack([nats(logits[n : n + 1], ids[n : n + 1]) for n in range(6)]).double()
    torch.testing.assert_close(held, wanted[1::2], rtol=1e-4, atol=1e-4)
    assert learn.item() == pytest.approx(wanted[::2].mean().item(), abs=1e-4)


def test_classes_of_images_have_a_loss_too() -> None:
    model, inputs, _ = ZOO["vit"]()
    inputs = inputs | {"labels": torch.tensor([0, 1, 0])}
    with mixing_of(model.eval(), [inputs]) as mixing:
        mix = numbers(mixing.kinds)
        found = mixing.losses(mix)
    with torch.no_grad():
        logits = grown(model, inputs, mix)(pixel_values=inputs["pixel_values"]).logits
    wanted = nn.functional.cross_entropy(logits[1:2], inputs["labels"][1:2]).double()
    torch.testing.assert_close(found, wanted[None], rtol=1e-5, atol=1e-5)


def test_running_means_are_mixed_as_the_step_does() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(self.norm(x))

    torch.manual_seed(0)
    model = nn.Sequential(Normed(), Normed(), Normed(), nn.Linear(4, 5)).eval()
    for block in model[:3]:
        nn.init.normal_(block.norm.running_mean)
    inputs = {"input": vectors(6, 4), "labels": torch.arange(6) % 5}
    mix = {kind: matrix.requires_grad_() for kind, matrix in numbers(("all",)).items()}
    with mixing_of(model, [inputs]) as mixing:
        assert "norm.running_mean" not in mixing.kinds
        mixing.loss(mix, 0).backward()
        found = mixing.losses(mix)
    with torch.no_grad():
        logits = grown(model, inputs, mix)(inputs["input"][1::2])
    wanted = nn.functional.cross_entropy(logits, inputs["labels"][1::2], reduction="none").double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert mix["all"].grad.isfinite().all()


def test_a_matrix_for_all_and_one_of_its_own() -> None:
    """As in the step: a name of its own goes first, and a weight without any is stacked."""
    model = llama().eval()
    mix = numbers(("all", "mlp.up_proj.weight"))
    ids = INPUTS["input_ids"][1::2]
    with mixing_of(model, [INPUTS]) as mixing:
        for some in (mix, {"mlp.up_proj.weight": mix["mlp.up_proj.weight"]}):
            found = mixing.held.mean(mixing.losses(some)).item()
            assert found == pytest.approx(nats(forward(grown(model, INPUTS, some), ids), ids).item(), abs=1e-5)


def test_the_gradient_is_the_slope_of_the_loss_of_models_made_from_plans() -> None:
    """Central differences in float64, at every number of two matrices."""
    model = gpt2().double().eval()
    ids = INPUTS["input_ids"][::2]
    own = ("attn.c_attn.weight", "ln_1.weight")
    mix = {kind: matrix.requires_grad_() for kind, matrix in numbers(own).items()}
    with mixing_of(model, [INPUTS]) as mixing:
        mixing.loss(mix, 0).backward()
    for kind in own:
        for j, k in ((0, 0), (1, 2), (3, 0), (5, 1)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {name: matrix.detach().clone() for name, matrix in mix.items()}
                moved[kind][j, k] += step
                ends.append(nats(forward(grown(model, INPUTS, moved), ids), ids).item())
            slope = (ends[0] - ends[1]) / 2e-5
            assert mix[kind].grad[j, k].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("model", [llama, gpt2])
def test_steps_against_the_gradient_lower_the_loss(model: Any) -> None:
    with mixing_of(model(), [INPUTS]) as mixing:
        mix = {kind: stacking(3, 2).requires_grad_() for kind in mixing.kinds}
        losses = []
        for _ in range(4):
            losses.append(mixing.loss(mix, 0))
            losses[-1].backward()
            with torch.no_grad():
                for matrix in mix.values():
                    matrix -= 0.02 * matrix.grad
                    matrix.grad = None
    values = [loss.item() for loss in losses]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.01


def test_half_precision_has_gradients() -> None:
    model = llama().to(torch.bfloat16)
    with mixing_of(model, [INPUTS]) as mixing:
        mix = {"all": stacking(3, 2).requires_grad_()}
        mixing.loss(mix, 0).backward()
    assert mix["all"].grad.isfinite().all()
    assert (mix["all"].grad != 0).all()


def test_every_other_document_is_learned_on_whatever_the_batches() -> None:
    with mixing_of(llama(), UNEVEN) as mixing:
        halves = [torch.cat([batch["input_ids"] for batch in half.batches]) for half in (mixing.learn, mixing.held)]
    documents = torch.cat([batch["input_ids"] for batch in UNEVEN])
    assert torch.equal(halves[0], documents[::2])
    assert torch.equal(halves[1], documents[1::2])


def test_padding_does_not_count() -> None:
    model, ids = llama(), token_ids(4)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with mixing_of(model, [{"input_ids": ids, "attention_mask": mask}]) as mixing:
        found = mixing.losses(numbers(mixing.kinds))
    with mixing_of(model, [{"input_ids": ids[:2, :7]}]) as mixing:
        alone = mixing.losses(numbers(mixing.kinds))
    torch.testing.assert_close(found[:1], alone, rtol=1e-5, atol=1e-5)


# The plan


@pytest.mark.parametrize("model", [llama, gpt2])
def test_the_plan_makes_the_model_whose_loss_it_states(model: Any) -> None:
    net = model().eval()
    plan, frame = planned(net, steps=12)
    ((_, step),) = plan.steps[0].items()
    assert (step["depth"], step["by"]) == (2, "learn")
    ids = ALIKE["input_ids"][1::2]
    stacked = apply(Stack.find(net, INPUTS), Plan(({"stack": 2},)), INPUTS)[0]
    made = apply(Stack.find(net, INPUTS), Plan.from_yaml(plan.to_yaml()), INPUTS)[0]
    wanted = [nats(forward(m, ids), ids).item() for m in (made, stacked, net)]
    assert list(map(float, re.findall(r"\d+\.\d{4}", plan.why))) == pytest.approx(wanted, abs=1e-4)
    assert wanted[0] < wanted[1]
    assert "12 steps on 3 documents learned" in plan.why
    assert "on 3 held-out documents" in plan.why
    assert frame["value"].iloc[-1] < frame["value"].iloc[0]


def test_numbers_have_six_digits_and_each_kind_of_weight_a_matrix() -> None:
    plan, _ = planned(llama(), steps=2)
    mix = plan.steps[0]["grow"]["mix"]
    assert set(mix) == {name for name, _ in llama().model.layers[0].named_parameters()}
    every = [x for matrix in mix.values() for row in matrix for x in row]
    assert len(every) == len(mix) * 18
    assert all(x == float(f"{x:.6g}") for x in every)
    assert len(set(every)) > len(every) / 4


def test_one_matrix_for_all_weights_of_a_block() -> None:
    plan, _ = planned(llama(), steps=2, per="block")
    assert list(plan.steps[0]["grow"]["mix"]) == ["all"]
    assert "learned 1 matrix that mixes the 3 blocks" in plan.why


def test_three_times_as_deep() -> None:
    model = llama()
    plan, _ = planned(model, steps=2, times=3, per="block")
    assert len(plan.steps[0]["grow"]["mix"]["all"]) == 9
    assert len(apply(Stack.find(model, INPUTS), plan, INPUTS)[1].order) == 9


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    plans = [planned(llama(), UNEVEN, steps=4, seed=seed)[0] for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


@pytest.mark.parametrize("rate", [1e-9, 1e9])
def test_where_nothing_is_gained_the_plan_stacks_and_says_so(rate: float) -> None:
    """Steps too short to change a digit, and so long that the loss is lost."""
    plan, _ = planned(llama(), steps=2, rate=rate)
    assert plan.steps == ({"grow": {"depth": 2}},)
    assert plan.why.startswith("Learning gained nothing over stacking, which is what the plan does: 2 steps on 3 ")


def test_the_model_is_left_as_it_was() -> None:
    model = llama().train()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    state = torch.random.get_rng_state()
    planned(model, steps=2)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_work_is_told_and_the_losses_are_kept() -> None:
    told: list[tuple[str, int, int]] = []
    stack = Stack.find(llama(), INPUTS)
    plan_with("learned_growth", stack, batches=[INPUTS], options={"steps": 3}, progress=lambda *step: told.append(step))
    assert told == [("learning", n, 3) for n in (1, 2, 3)]
    _, frame = planned(llama(), steps=3)
    assert frame["step"].tolist() == [0, 1, 2]
    assert frame.attrs["name"] == "learned_growth"
    assert frame.attrs["unit"] == "nat/token"
    assert frame.attrs["paper"]["arxiv"] == "2405.15319"


def test_the_command_line_shows_the_plan(tiny_folder: Path, text_file: Path, capsys: Any) -> None:
    code, out, _ = run(
        capsys, "reshape", tiny_folder, "--plan-with", "learned_growth", "--set", "steps=2", "--set", "per=block",
        "--text", text_file, "--length", "64", "--dry-run",
    )  # fmt: skip
    assert code == 0
    assert Plan.from_yaml(out).steps[0]["grow"]["depth"] == 2
    assert "held-out documents" in yaml.safe_load(out)["why"]


# Bad input


@pytest.mark.parametrize(
    "options, words",
    [
        ({"times": 1}, "got times 1"),
        ({"steps": 0}, "got steps 0"),
        ({"rate": 0}, "got rate 0"),
        ({"rate": "fast"}, "got rate 'fast'"),
        ({"per": "layer"}, "weight or block"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(llama(), **options)


def test_one_document_is_not_enough() -> None:
    with pytest.raises(UserError, match="got data of 1 documents; expected at least 2"):
        planned(llama(), [{"input_ids": token_ids(1)}])
    with pytest.raises(UserError, match="got data of 0 documents"):
        plan_with("learned_growth", Stack.find(llama(), INPUTS))


def test_documents_with_nothing_to_predict() -> None:
    with pytest.raises(UserError, match="half of the documents have no token to predict"):
        planned(llama(), [INPUTS | {"attention_mask": torch.tensor([[1] * 12, [1] + [0] * 11] * 3)}])


def test_no_labels_or_no_logits() -> None:
    model, inputs, _ = ZOO["bert"]()
    with pytest.raises(UserError, match="holds no labels"):
        planned(model, [inputs])
    model, inputs, _ = ZOO["nn.TransformerEncoder, norm first"]()
    with pytest.raises(UserError, match="gives no logits"):
        planned(model, [inputs])


def test_towers_that_cannot_be_mixed() -> None:
    model, inputs, _ = ZOO["looped core"]()
    with pytest.raises(UserError, match="blocks of core are not the members of one list, each run once"):
        planned(model, [inputs])
    model, inputs, _ = ZOO["albert"]()
    with pytest.raises(UserError, match="runs 1 blocks 4 times"):
        planned(model, [inputs])
    inputs = {"x": pixels(8), "labels": torch.tensor([0, 1, 2])}
    with pytest.raises(UserError, match="cannot be reordered"):
        planned(ConvNet(blocks=2), [inputs])


def test_blocks_of_different_shapes_are_named() -> None:
    class Block(nn.Module):
        def __init__(self, hidden: int) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, hidden), nn.Linear(hidden, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.outer(self.inner(x))

    model = nn.Sequential(Block(8), Block(8), Block(6), nn.Linear(4, 3))
    with pytest.raises(UserError, match="blocks 0 and 2 hold weights of different names or shapes"):
        planned(model, [{"input": torch.ones(4, 4), "labels": torch.tensor([0, 1, 2, 0])}])


def test_a_plan_can_hold_so_many_numbers() -> None:
    """As long as numbers can be written, the largest plan is as long as a plan may be."""
    deep = SimpleNamespace(depth=100, kinds=("a", "b", "c"))
    with pytest.raises(UserError, match=r"3 matrices of 200 × 100 are 60,000 numbers.*\(40,000\); give per=block"):
        learned_growth(deep, 0, lambda name, frame: None)
    mix = {"a": [[-1.23456e-05] * 100] * 20}
    part = Plan(({"grow": {"depth": 2, "by": "learn", "mix": mix}},)).to_yaml()
    assert len(part) * 40_000 / 2000 < _LONGEST
