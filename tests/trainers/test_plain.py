"""The plain loop: what it computes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SENTENCE
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from zoo import gpt2, language_model, llama, token_ids

from layerwright.core.errors import UserError
from layerwright.trainers.corpus import Corpus, collate, read_corpus
from layerwright.trainers.held_out import held_out_sums, mean_loss
from layerwright.trainers.objective import Objective
from layerwright.trainers.order import Order
from layerwright.trainers.plain import train
from layerwright.trainers.schedule import learning_rate
from layerwright.trainers.training import COLUMNS, Training

IDS = token_ids(40, 10)
SMALL: dict[str, Any] = {"steps": 4, "batch": 4, "lr": 1e-2}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(found: nn.Module, expected: nn.Module | dict[str, Tensor], **tolerance: float) -> None:
    expected = weights(expected) if isinstance(expected, nn.Module) else expected
    assert weights(found).keys() == expected.keys()
    for name, p in weights(found).items():
        torch.testing.assert_close(p, expected[name], **({"rtol": 0, "atol": 0} | tolerance))


def refused(*args: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        train(*args, **(SMALL | more))
    assert "\n" not in str(error.value)
    return str(error.value)


def rows(model: nn.Module, data: Any = IDS) -> Corpus:
    return read_corpus(data, model, None, length=64, tokens=10**6)


def naive(
    model: nn.Module, *, steps: int, batch: int, lr: float, warmup: int = 1, decay: float = 0.1, seed: int = 0,
    teacher: nn.Module | None = None, alpha: float = 0.0, temperature: float = 1.0,
) -> tuple[nn.Module, list[float]]:  # fmt: skip
    """AdamW, clipping and the schedule written out on numbers, from the papers' pseudo-code."""
    model = copy.deepcopy(model).eval()
    samples = rows(model).train
    order = Order(len(samples), seed)
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    losses = []
    for k in range(steps):
        ids = collate([samples[i] for i in order.at(k * batch, batch)], torch.device("cpu"))["input_ids"]
        logits = model(ids).logits[:, :-1]
        p = logits.log_softmax(-1)
        loss = -p.gather(-1, ids[:, 1:, None]).mean()
        losses.append(loss.item())
        if teacher is not None:
            with torch.no_grad():
                its = (teacher(ids).logits[:, :-1] / temperature).softmax(-1)
            mine = (logits / temperature).log_softmax(-1)
            distance = (its * (its.log() - mine)).sum(-1).mean() * temperature**2
            loss = (1 - alpha) * loss + alpha * distance
        named = dict(model.named_parameters())
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values()))))
        length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        rate = lr * learning_rate(k, steps, warmup)
        for name, x in named.items():
            g = gradients[name] * min(1.0, 1.0 / length)
            first[name] = 0.9 * first.get(name, torch.zeros_like(g)) + 0.1 * g
            second[name] = 0.95 * second.get(name, torch.zeros_like(g)) + 0.05 * g**2
            m, v = first[name] / (1 - 0.9 ** (k + 1)), second[name] / (1 - 0.95 ** (k + 1))
            with torch.no_grad():
                x.mul_(1 - rate * decay * (x.ndim >= 2)).sub_(rate * m / (v.sqrt() + 1e-8))
    return model, losses


# What it computes


def test_it_is_adamw_with_warmup_cosine_and_clipping() -> None:
    model = llama()
    found = train(model, IDS, **(SMALL | {"steps": 6}), warmup=2)
    expected, losses = naive(model, steps=6, batch=4, lr=1e-2, warmup=2)
    assert_same_weights(found.model, expected, rtol=1e-4, atol=1e-5)
    assert found.curve.loss[1:].tolist() == pytest.approx(losses, rel=1e-5)
    assert found.curve.lr[1:].tolist() == [1e-2 * learning_rate(k, 6, 2) for k in range(6)]
    assert (found.curve.gradient_norm[1:] > 1).any()


@pytest.mark.parametrize("alpha, temperature", [(0.5, 2.0), (1.0, 1.0)])
def test_it_learns_from_a_teacher(alpha: float, temperature: float) -> None:
    model, teacher = llama(), gpt2().train()
    before = weights(teacher)
    found = train(model, IDS, **SMALL, teacher=teacher, alpha=alpha, temperature=temperature)
    more = {"teacher": copy.deepcopy(teacher).eval(), "alpha": alpha, "temperature": temperature}
    expected, losses = naive(model, **SMALL, **more)
    assert_same_weights(found.model, expected, rtol=1e-4, atol=1e-5)
    assert found.curve.loss[1:].tolist() == pytest.approx(losses, rel=1e-5)
    assert (found.curve.distillation[1:] > 0).all()
    assert_same_weights(teacher, before)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert found.about["teacher"] == "GPT2LMHeadModel"


def test_a_model_may_learn_from_itself_as_it_was() -> None:
    model = llama()
    found = train(model, IDS, **SMALL, teacher=model, alpha=1.0)
    assert found.curve.distillation[1] == pytest.approx(0, abs=1e-6)
    assert found.curve.distillation[2:].max() < 0.1


def test_passes_that_are_accumulated_are_one_large_batch() -> None:
    """Also where they hold different numbers of tokens: the mean is over tokens, not over passes."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 40, (4 + 3 * (k % 4),), generator=draw) for k in range(40)]
    model = llama()
    whole = train(model, ids, **(SMALL | {"batch": 8}))
    parts = train(model, ids, **(SMALL | {"batch": 2}), accumulate=4)
    assert_same_weights(parts.model, whole.model, rtol=1e-4, atol=1e-5)
    assert parts.curve.tokens.tolist() == whole.curve.tokens.tolist()
    assert parts.curve.loss[1:].tolist() == pytest.approx(whole.curve.loss[1:].tolist(), rel=1e-5)


def test_the_next_sequence_is_learned(tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM) -> None:
    found = train(tiny_model, [SENTENCE * 40], steps=60, lr=1e-2, batch=8, length=32, tokenizer=tokenizer)
    assert found.held_out.after < found.held_out.before - 1
    assert found.held_out.low < found.held_out.change < found.held_out.high < -1
    measured = found.curve.dropna(subset="validation_loss")
    assert measured.step.tolist() == list(range(0, 61, 6))
    assert measured.validation_loss.iloc[0] == found.held_out.before
    assert measured.validation_loss.iloc[-1] == found.held_out.after
    corpus = read_corpus([SENTENCE * 40], tiny_model, tokenizer, length=32, tokens=10**5)
    sums = held_out_sums(found.model, Objective("next token", 258), corpus, 8)
    assert mean_loss(sums) == pytest.approx(found.held_out.after)


def test_labels_of_sequences_are_learned() -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    data = {"input": x, "labels": (x[:, 0] > 0).long()}
    found = train(model, data, steps=100, batch=16, lr=3e-2)
    assert found.about["objective"] == "sequence"
    assert found.held_out.after < 0.2 < found.held_out.before


@pytest.mark.parametrize("share", ["module", "parameters"])
def test_a_weight_in_two_places_is_stepped_once_and_stays_one(share: str) -> None:
    """A looped block: the gradient of each place counts, and one update is made."""
    model = llama(tie_word_embeddings=True)
    layers = model.model.layers
    if share == "module":
        layers[2].mlp = layers[0].mlp
    else:
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layers[2].mlp, name).weight = getattr(layers[0].mlp, name).weight
    found = train(model, IDS, **SMALL).model
    assert found.model.layers[2].mlp.up_proj.weight is found.model.layers[0].mlp.up_proj.weight
    assert found.lm_head.weight is found.model.embed_tokens.weight
    expected, _ = naive(model, **SMALL)  # type: ignore[arg-type]
    assert_same_weights(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.model.layers[0].mlp.up_proj.weight.equal(model.model.layers[0].mlp.up_proj.weight)


def test_only_matrices_decay() -> None:
    model = llama()
    plain = train(model, IDS, **SMALL, weight_decay=0.0).model
    decayed = train(model, IDS, **SMALL, weight_decay=5.0).model
    naive_decayed, _ = naive(model, **SMALL, decay=5.0)  # type: ignore[arg-type]
    assert_same_weights(decayed, naive_decayed, rtol=1e-4, atol=1e-5)
    assert decayed.lm_head.weight.norm() < plain.lm_head.weight.norm()


def test_frozen_weights_stay() -> None:
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    before = weights(model)
    found = train(model, IDS, **SMALL).model
    changed = {name for name, p in weights(found).items() if not p.equal(before[name])}
    assert changed == before.keys() - {"model.embed_tokens.weight"}


def test_a_weight_without_a_gradient_stays() -> None:
    """As of a block that is skipped: no decay either."""
    model = llama()
    model.unused = nn.Parameter(torch.ones(3, 3))
    assert train(model, IDS, **SMALL).model.unused.eq(1).all()


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_trained_in_float32(dtype: torch.dtype) -> None:
    """Steps too small for a weight's last digit add up."""
    model = llama().to(dtype)
    found = train(model, IDS, **(SMALL | {"steps": 30, "lr": 1e-4}))
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    wide = train(copy.deepcopy(model).float(), IDS, **(SMALL | {"steps": 30, "lr": 1e-4}))
    for (name, p), q in zip(found.model.named_parameters(), wide.model.parameters()):
        assert p.equal(q.to(dtype)), name
    assert found.curve.loss[1:].tolist() == wide.curve.loss[1:].tolist()


def test_inputs_have_the_precision_of_the_training() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 2))
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    data = {"input": x, "labels": (x[:, 0] > 0).long()}
    wide = train(model.to(torch.bfloat16).float(), data, **SMALL)
    half = train(model.to(torch.bfloat16), data, **SMALL)
    assert half.curve.loss[1:].tolist() == wide.curve.loss[1:].tolist()
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_the_loss_after_is_that_of_the_stored_weights() -> None:
    model = llama().to(torch.bfloat16)
    found = train(model, IDS, **SMALL)
    sums = held_out_sums(copy.deepcopy(found.model).float(), Objective("next token", 40), rows(model), 4)
    assert found.held_out.after == mean_loss(sums)


def test_autocast_trains_float32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = nn.functional.linear

    def linear(x: Tensor, *args: Any) -> Tensor:
        out = real(x, *args)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(nn.functional, "linear", linear)
    model = llama()
    whole = train(model, IDS, **SMALL)
    assert set(seen) == {torch.float32}
    seen.clear()
    found = train(model, IDS, **SMALL, dtype="bfloat16")
    assert set(seen) == {torch.float32, torch.bfloat16}  # held-out losses are always float32
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert found.curve.loss[1:].tolist() == pytest.approx(whole.curve.loss[1:].tolist(), rel=0.02)
    assert found.curve.loss[4] != whole.curve.loss[4]


# What it leaves alone


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_the_callers_model_and_random_state_are_left_alone(mode: str) -> None:
    model = gpt2().train(mode == "training")
    before, state = weights(model), torch.random.get_rng_state()
    found = train(model, IDS, **SMALL)
    assert_same_weights(model, before)
    assert model.training == (mode == "training")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.random.get_rng_state().equal(state)
    assert not found.model.training
    assert found.model is not model


def test_in_place_is_the_same_model_trained_the_same() -> None:
    model = llama().to(torch.bfloat16).train()
    apart = train(model, IDS, **SMALL).model
    parameter = model.lm_head.weight
    found = train(model, IDS, **SMALL, in_place=True)
    assert found.model is model
    assert model.training
    assert model.lm_head.weight is parameter
    assert_same_weights(model, apart)
    assert all(p.grad is None for p in model.parameters())


def test_it_trains_where_a_caller_forbids_gradients() -> None:
    model = llama()
    expected = train(model, IDS, **SMALL).model
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert_same_weights(train(model, IDS, **SMALL).model, expected)


def test_a_seed_decides_order_and_dropout() -> None:
    model = gpt2()  # drops a tenth of its activations
    torch.manual_seed(1)
    one = train(model, IDS, **SMALL, seed=5)
    torch.manual_seed(2)
    assert_same_weights(train(model, IDS, **SMALL, seed=5).model, one.model)
    other = train(model, IDS, **SMALL, seed=6)
    assert other.curve.loss[1] != one.curve.loss[1]
    assert other.held_out.before == one.held_out.before
    without = train(gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), IDS, **SMALL, seed=5)
    assert without.curve.loss[1] != one.curve.loss[1]


def test_held_out_losses_do_not_change_the_training() -> None:
    model = gpt2()
    often, seldom = (train(model, IDS, **(SMALL | {"steps": 5}), every=every) for every in (1, 5))
    assert_same_weights(often.model, seldom.model)
    assert often.curve.validation_loss.notna().sum() == 6
    assert seldom.curve.validation_loss.notna().tolist() == [True, False, False, False, False, True]


# What it gives


def test_the_curve_says_what_its_numbers_are() -> None:
    found = train(llama(), IDS, **SMALL)
    assert list(found.curve.columns) == list(COLUMNS)
    assert found.curve.step.tolist() == [0, 1, 2, 3, 4]
    assert found.curve.tokens.tolist() == [0, 36, 72, 108, 144]
    assert found.curve.distillation.isna().all()
    assert found.curve.attrs["unit"]["loss"] == "nat/token"
    assert found.curve.attrs["definition"].keys() == COLUMNS.keys()
    assert (found.curve.seconds.diff()[1:] > 0).all()


def test_a_document_holds_everything() -> None:
    found = train(llama(), IDS, **SMALL)
    document = found.to_dict()
    again = Training.of_document(document, found.model)
    assert again.to_dict() == document
    assert again.held_out == found.held_out
    with pytest.raises(UserError, match=r"training\.json is not the record of a training run: 'curve'"):
        Training.of_document({name: x for name, x in document.items() if name != "curve"}, found.model)


def test_progress_starts_before_the_model_is_loaded() -> None:
    seen: list[tuple[str, int, int]] = []
    train(llama(), IDS, **SMALL, progress=lambda *call: seen.append(call))
    assert seen[0] == ("loading", 0, 1)
    assert [call for call in seen if call[0] == "training"] == [("training", k, 4) for k in range(5)]
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["loading", "reading", "training"]


def test_a_folder_is_trained_with_its_tokenizer(tiny_folder: Path, text_file: Path) -> None:
    found = train(tiny_folder, text_file, steps=2, length=32)
    assert (found.about["name"], found.about["class"]) == ("tiny-llama", "LlamaForCausalLM")
    assert found.data["source"] == str(text_file)
    assert found.settings["length"] == 32


# What it refuses


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "got steps 0; expected a whole number, at least 1"),
        ({"steps": 2.5}, "got steps 2.5; expected a whole number, at least 1"),
        ({"batch": 0}, "got batch 0; expected a whole number, at least 1"),
        ({"length": 0}, "got length 0; expected a whole number, at least 1"),
        ({"accumulate": -1}, "got accumulate -1; expected a whole number, at least 1"),
        ({"every": 0}, "got every 0; expected a whole number, at least 1"),
        ({"warmup": 5}, "got warmup 5; expected from 0 to the 4 steps of the run"),
        ({"lr": 0.0}, "got lr 0.0; expected a number above 0"),
        ({"lr": -1e-3}, "got lr -0.001; expected a number above 0"),
        ({"lr": math.nan}, "got lr nan; expected a number above 0"),
        ({"weight_decay": -1.0}, "got weight_decay -1.0; expected a number, at least 0"),
        ({"dtype": "float16"}, "got dtype 'float16'; expected one of auto, float32, bfloat16"),
        ({"teacher": "demo", "alpha": 1.5}, "got alpha 1.5; expected from 0 (the text alone) to 1"),
        ({"temperature": 0.0}, "got temperature 0.0; expected a number above 0"),
        ({"length": 65}, "got sequences of 65 tokens; the model takes at most 64"),
        ({"in_place": True, "out": "x"}, "got in_place; expected a live model and no out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    assert message in refused(llama(), IDS, **options)


def test_settings_are_refused_before_the_model_is_loaded() -> None:
    assert "got steps 0" in refused("no/such/folder", IDS, steps=0)
    assert "no folder no/such/folder" in refused("no/such/folder", IDS)


def test_a_teacher_of_another_vocabulary_is_refused(
    tiny_folder: Path, front_tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    said = refused(llama(), IDS, teacher=llama(vocab_size=50))
    assert said.startswith("the teacher answers over 50 classes (next token), the model over 40 (next token)")
    tokenizer = copy.deepcopy(front_tokenizer)
    tokenizer.add_tokens(["<more>"])
    said = refused(tiny_folder, text_file, teacher=tiny_folder, tokenizer=tokenizer, length=32)
    assert said.startswith("the teacher's vocabulary of 258 tokens is not that of the model (259 tokens)")


def test_a_model_that_is_trained_in_place_is_no_teacher() -> None:
    model = llama()
    assert refused(model, IDS, teacher=model, in_place=True).startswith("the teacher shares weights with the model")


def test_weights_that_cannot_be_trained_are_refused() -> None:
    whole = llama()
    whole.lm_head.weight = nn.Parameter(torch.zeros(40, 16, dtype=torch.int8), requires_grad=False)
    assert refused(whole, IDS) == "weight lm_head.weight is int8; expected floating-point weights"
    eight = llama().to(torch.float8_e4m3fn)
    assert "is float8_e4m3fn; expected floating-point weights" in refused(eight, IDS)
    quantised = llama()
    quantised.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert refused(quantised, IDS).startswith("the model's weights are quantised")
    assert refused(llama().requires_grad_(False), IDS).startswith("no weight of the model asks for a gradient")


def test_models_without_a_task_are_refused() -> None:
    assert refused(llama().model, IDS).startswith("LlamaModel gives no logits")
    assert "the model sees later tokens" in refused(language_model("Bert", "BertForMaskedLM"), token_ids(40))


def test_data_without_a_label_is_refused() -> None:
    labels = torch.full_like(IDS, -100)
    assert refused(llama(), {"input_ids": IDS, "labels": labels}).startswith("no held-out token has a label")


def test_no_text_is_refused() -> None:
    assert refused(llama(), None).startswith("no text to train on")


def test_a_model_that_cannot_be_copied_can_be_trained_in_place() -> None:
    model = llama()
    model.cache = model.lm_head.weight * 2  # not a leaf of the graph
    said = refused(model, IDS)
    assert said.startswith("the model cannot be copied:")
    assert said.endswith("pass in_place=True")
    assert train(model, IDS, **SMALL, in_place=True).model is model


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step() -> None:
    model = llama()
    calls = []

    def spoil(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append(module.training)
        return out * math.nan if sum(calls) == 3 else out

    model.lm_head.register_forward_hook(spoil)
    said = refused(model, IDS, steps=9)
    assert said == ("the loss is nan at step 3 of 9; try a lower learning rate (got 0.01) or a longer warmup (got 1)")
    assert "is nan at step 2 of 9; try a lower learning rate (got 1e+35)" in refused(llama(), IDS, lr=1e35, steps=9)
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    assert refused(broken, IDS) == "the loss on held-out text is nan before the first step: survey the model"


def test_a_gradient_that_is_not_finite_ends_the_run_at_its_step() -> None:
    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.inf

    model = llama()
    model.lm_head.register_forward_hook(lambda module, args, out: Exploding.apply(out))
    before = weights(model)
    assert refused(model, IDS, in_place=True).startswith("the gradient is nan at step 1 of 4")
    assert_same_weights(model, before)
