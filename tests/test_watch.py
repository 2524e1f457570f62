"""Measures along a training run: the lines, what they hold, and a training that does not notice."""

from __future__ import annotations

import copy
import json
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState
from zoo import ZOO, llama, token_ids

import layerwright as lw
from layerwright.core import training_log
from layerwright.core.errors import UserError
from layerwright.core.sharpness import loss_sharpness
from layerwright.core.stack import Stack
from layerwright.core.training_log import TrainingLog
from layerwright.verbs.watcher import Watch

HELD_OUT = {"input_ids": token_ids(4, seed=9)}
BOTH = ["residual_contribution", "loss_sharpness"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "measures.jsonl").read_text().splitlines()]


def columns(frame: Any) -> dict[str, list[Any]]:
    return {name: frame[name].tolist() for name in (*frame.attrs["index"], "value")}


Log = Callable[..., Any]


def trained(log: Callable[[nn.Module], Log], when: str = "after the step", steps: int = 6) -> dict[str, Any]:
    """All that training leaves behind, with dropout, and a log that is called at some place in every step."""
    torch.manual_seed(0)
    model = llama(attention_dropout=0.2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    call = log(model)
    for step in range(1, steps + 1):
        ids = torch.randint(0, 40, (3, 12))
        loss = model(input_ids=ids, labels=ids).loss
        for place, work in (("before the backward", loss.backward), ("before the step", optimizer.step)):
            if when == place:
                call(step, loss=loss)
            work()
        if when == "after the step":
            call(step, loss=loss)
        if step < steps:
            optimizer.zero_grad()
    state = [x for entry in optimizer.state_dict()["state"].values() for x in entry.values()]
    return {
        "weights": [*model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": state,
        "random numbers": [torch.rand(3)],
        "modes": [m.training for m in model.modules()],
    }


def test_a_line_holds_what_a_survey_at_that_step_finds(tmp_path: Path) -> None:
    found: dict[int, Any] = {}

    def log(model: nn.Module) -> Log:
        measures = ["jacobian_identity", "loss_sharpness"]
        options = {"loss_sharpness": {"rho": 0.1}}
        watched = lw.watch(model, HELD_OUT, every=3, measures=measures, options=options, seed=3, out=tmp_path)

        def both(step: int, loss: Tensor) -> None:
            line = watched(step, loss=loss)
            assert (line is None) == bool(step % 3)
            if line is not None:
                stack = Stack.find(model, HELD_OUT)
                survey = lw.survey(model, HELD_OUT, only=measures[:1], seed=3)
                found[step] = (columns(survey[measures[0]]), loss_sharpness(stack, [HELD_OUT], 0.1), loss.item())

        return both

    trained(log)
    assert [line["step"] for line in lines(tmp_path)] == [*found] == [3, 6]
    for line in lines(tmp_path):
        identity, sharpness, loss = found[line["step"]]
        assert line["measures"]["jacobian_identity"] == identity
        values = line["measures"]["loss_sharpness"]
        assert dict(zip(zip(values["block"], values["quantity"]), values["value"])) == sharpness
        assert line["loss"] == loss
        assert "notes" not in line


@pytest.mark.parametrize("when", ["after the step", "before the backward", "before the step"])
def test_training_is_the_same_to_the_bit(when: str, tmp_path: Path) -> None:
    measures = [*BOTH, "skip_output", "jacobian_identity", "gradient_spectrum"]
    without = trained(lambda model: lambda step, **numbers: None)
    watched = trained(lambda model: lw.watch(model, HELD_OUT, every=2, measures=measures, out=tmp_path), when)
    for what, values in without.items():
        for a, b in zip(values, watched[what], strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, what
    assert len(lines(tmp_path)) == 3


def test_data_that_a_loader_shuffles_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(token_ids(8), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    log = lw.watch(llama(), loader, out=tmp_path)
    log(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert log.data.sequences == 8


# Sharpness


def naive_rise(model: nn.Module, ids: Tensor, inside: str, rho: float) -> tuple[float, float, float]:
    """The inner step of sharpness-aware minimisation as its paper writes it: backward, add, forward."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    moved = [p for name, p in model.named_parameters() if name.startswith(inside)]
    norm = torch.stack([p.grad.norm(p=2) for p in moved]).norm(p=2)
    with torch.no_grad():
        for p in moved:
            p.add_(p.grad * rho / norm)
        after = model(input_ids=ids, labels=ids).loss
    return loss.item(), (after - loss).item(), rho * norm.item()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["plain", "tied"])
def test_sharpness_is_the_rise_after_the_step_of_the_paper(changes: dict[str, Any]) -> None:
    model, ids = llama(**changes), token_ids(6)
    found = loss_sharpness(Stack.find(model, {"input_ids": ids}), [{"input_ids": ids}], 0.3)
    places = {"model": "", "0": "model.layers.0.", "1": "model.layers.1.", "2": "model.layers.2."}
    assert {block for block, _ in found} == places.keys()
    for block, inside in places.items():
        loss, rise, first_order = naive_rise(model, ids, inside, 0.3)
        assert found["model", "loss"] == pytest.approx(loss, rel=1e-5)
        assert found[block, "rise"] == pytest.approx(rise, rel=1e-4, abs=5e-6)
        assert found[block, "first_order"] == pytest.approx(first_order, rel=1e-4)


def test_sharpness_does_not_depend_on_how_the_data_is_split() -> None:
    model, ids = llama().double(), token_ids(6)
    stack = Stack.find(model, {"input_ids": ids})
    whole = loss_sharpness(stack, [{"input_ids": ids}])
    split = loss_sharpness(stack, [{"input_ids": ids[:1]}, {"input_ids": ids[1:]}])
    assert [*split.values()] == pytest.approx([*whole.values()], rel=1e-7)


def test_a_small_step_rises_to_first_order() -> None:
    model = llama().double()
    found = loss_sharpness(Stack.find(model, HELD_OUT), [HELD_OUT], 1e-4)
    for block in ("model", "0", "1", "2"):
        assert found[block, "rise"] == pytest.approx(found[block, "first_order"], rel=1e-3)


def test_random_directions_of_the_same_length_rise_less() -> None:
    model = llama().double()
    found = loss_sharpness(Stack.find(model, HELD_OUT), [HELD_OUT], 1e-3)
    ids, weights = HELD_OUT["input_ids"], [*model.parameters()]
    start = model(input_ids=ids, labels=ids).loss.item()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        steps = [torch.randn(w.shape, dtype=w.dtype, generator=generator) for w in weights]
        norm = torch.stack([s.norm() for s in steps]).norm()
        other = copy.deepcopy(model)
        with torch.no_grad():
            for w, s in zip(other.parameters(), steps):
                w.add_(1e-3 * s / norm)
            assert other(input_ids=ids, labels=ids).loss.item() - start < found["model", "rise"]


def test_frozen_weights_count_and_half_precision_is_widened() -> None:
    model = llama()
    free = loss_sharpness(Stack.find(model, HELD_OUT), [HELD_OUT])
    model.model.layers[0].requires_grad_(False)
    assert loss_sharpness(Stack.find(model, HELD_OUT), [HELD_OUT]) == free
    half = llama().bfloat16()
    rounded = loss_sharpness(Stack.find(half, HELD_OUT), [HELD_OUT])
    # A step of this length would be lost in the rounding of bfloat16: it is taken in float32.
    wide = loss_sharpness(Stack.find(half.float(), HELD_OUT), [HELD_OUT])
    assert [*rounded.values()] == pytest.approx([*wide.values()], rel=1e-5)


def test_an_image_classifier_has_a_loss_where_the_data_has_labels() -> None:
    model, inputs, _ = ZOO["vit"]()
    stack = Stack.find(model, inputs)
    with pytest.raises(UserError, match="no labels"):
        loss_sharpness(stack, [inputs])
    labels = torch.tensor([0, 1, 0])
    found = loss_sharpness(stack, [inputs | {"labels": labels}])
    naive = nn.functional.cross_entropy(model.eval()(**inputs).logits, labels).item()
    assert found["model", "loss"] == pytest.approx(naive, rel=1e-5)
    assert found["model", "rise"] > 0


class Broken(Exception):
    """What goes wrong in the user's model."""


@pytest.mark.parametrize("call", [1, 2, 4, 6])
def test_weights_are_the_same_objects_and_bits_after_an_exception(call: int) -> None:
    model = llama()
    stack = Stack.find(model, HELD_OUT)
    objects = {name: (id(p), p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    count = 0

    def breaks(module: nn.Module, args: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise Broken

    model.lm_head.register_forward_pre_hook(breaks)
    with pytest.raises(Broken):
        loss_sharpness(stack, [HELD_OUT])
    for name, p in model.named_parameters():
        assert (id(p), p.data_ptr()) == objects[name][:2]
        assert torch.equal(p, objects[name][2])
        assert p.requires_grad


# The file


def test_a_line_that_a_run_was_stopped_in_is_cut_off_and_the_run_goes_on(tmp_path: Path) -> None:
    model = llama()
    log = lw.watch(model, HELD_OUT, every=1, out=tmp_path)
    log(0)
    log(1)
    file = tmp_path / "measures.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 2, "loss": 1.')
    lw.watch(model, HELD_OUT, every=1, out=tmp_path)(2)
    assert file.read_bytes().startswith(whole)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_a_step_that_is_logged_again_takes_the_place_of_its_older_line(tmp_path: Path) -> None:
    model = llama()
    log = lw.watch(model, HELD_OUT, every=1, out=tmp_path)
    for step in (0, 1, 2):
        log(step, loss=3.0)
    again = lw.watch(model, HELD_OUT, every=1, out=tmp_path)  # from the checkpoint at step 1
    for step in (1, 2, 3):
        again(step, loss=2.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 3.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrainingLog(tmp_path / "measures.jsonl")
    log.write({"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_log.os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            log.write({"step": 2})
    assert lines(tmp_path) == [{"step": 1}]
    log.write({"step": 2})
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import itertools, pathlib, sys\n"
        "from layerwright.core.training_log import TrainingLog\n"
        "log = TrainingLog(pathlib.Path(sys.argv[1]) / 'measures.jsonl')\n"
        "for step in itertools.count():\n"
        "    log.write({'step': step, 'values': [0.5] * 20_000})\n"
        "    print(step, flush=True)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run.stdout:
        for _ in range(20):
            assert run.stdout.readline()
        run.send_signal(signal.SIGKILL)
    run.wait()
    log = TrainingLog(tmp_path / "measures.jsonl")
    assert log.last is not None
    assert [line["step"] for line in lines(tmp_path)] == [*range(log.last["step"] + 1)]
    assert log.last["step"] >= 19


@pytest.mark.parametrize("content", ["text\n", "[1]\n", '{"loss": 1}\n', '{"step": 1}\n{"step"\n{"step": 2}\n'])
def test_a_file_that_is_no_log_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "measures.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"line \d of .*measures\.jsonl"):
        lw.watch(llama(), HELD_OUT, out=tmp_path)
    assert (tmp_path / "measures.jsonl").read_text() == content


def test_other_data_does_not_get_into_the_same_file(tmp_path: Path) -> None:
    lw.watch(llama(), HELD_OUT, out=tmp_path)(0)
    with pytest.raises(UserError, match="other data"):
        lw.watch(llama(), {"input_ids": token_ids(4, seed=8)}, out=tmp_path)


def test_numbers_stand_in_the_line_and_undefined_ones_are_null(tmp_path: Path) -> None:
    log = lw.watch(llama(), HELD_OUT, measures=BOTH[1:], out=tmp_path)
    log(0, loss=torch.tensor(2.5, requires_grad=True), rate=np.float32(0.5), epoch=1, ratio=float("nan"))
    [line] = lines(tmp_path)
    numbers = {name: line[name] for name in ("loss", "rate", "epoch", "ratio")}
    assert numbers == {"loss": 2.5, "rate": 0.5, "epoch": 1, "ratio": None}


# What goes wrong

BEGIN = {
    "watch": lambda **given: lw.watch(llama(), HELD_OUT, **given),
    "Callback": lambda **given: lw.Callback(**given),
}
BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown measure": ({"measures": ["loss_sharpnes"]}, ("'loss_sharpnes'", "'loss_sharpness'")),
    "mistyped measure": ({"measures": ["residual_contributions"]}, ("did you mean 'residual_contribution'",)),
    "one name": ({"measures": "loss_sharpness"}, ("expected a list",)),
    "no measure": ({"measures": []}, ("got measures []",)),
    "no step": ({"every": 0}, ("got every 0", "at least 1")),
    "half a step": ({"every": 0.5}, ("got every 0.5", "at least 1")),
    "unknown option": ({"options": {"loss_sharpness": {"radius": 1}}}, ("'radius'", "expected rho")),
    "option of an unknown measure": ({"options": {"sharpness": {}}}, ("'sharpness'", "'loss_sharpness'")),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("how", BEGIN)
def test_bad_settings_are_told_before_the_training(case: str, how: str, tmp_path: Path) -> None:
    given, words = BAD[case]
    with pytest.raises(UserError) as error:
        BEGIN[how](out=tmp_path / "run", **given)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", BEGIN)
def test_a_folder_that_cannot_be_written_is_told_before_the_training(how: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*choose another out"):
        BEGIN[how](out=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "given, words",
    [({"measures": "text"}, "'measures'"), ({"loss": torch.zeros(2)}, "got loss"), ({"loss": "high"}, "'high'")],
)
def test_what_is_no_number_is_told(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    log = lw.watch(llama(), HELD_OUT, measures=BOTH[:1], out=tmp_path)
    with pytest.raises(UserError, match=words):
        log(0, **given)
    assert not (tmp_path / "measures.jsonl").exists()


def test_a_model_must_be_live(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got a str to watch"):
        lw.watch("demo", HELD_OUT, out=tmp_path)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_is_above_zero(rho: float, tmp_path: Path) -> None:
    log = lw.watch(llama(), HELD_OUT, measures=BOTH[1:], options={BOTH[1]: {"rho": rho}}, out=tmp_path)
    with pytest.raises(UserError, match="got rho"):
        log(0)


def test_a_measure_that_says_nothing_stops_the_first_line_only(tmp_path: Path) -> None:
    bert, inputs, _ = ZOO["bert"]()
    with pytest.raises(UserError, match=r"loss_sharpness could not be measured: .*no labels"):
        lw.watch(bert, inputs, measures=BOTH, out=tmp_path / "bert")(0)
    model = llama()
    log = lw.watch(model, HELD_OUT, every=1, measures=BOTH, out=tmp_path / "llama")
    log(0)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    log(1)
    good, bad = lines(tmp_path / "llama")
    assert "notes" not in good
    assert any(note.startswith("loss_sharpness could not be measured: block 1") for note in bad["notes"])
    values = bad["measures"]["residual_contribution"]
    undefined = {block for block, value in zip(values["block"], values["value"]) if value is None}
    assert undefined == {1, 2}
    # Undefined numbers are something to say, also at the first line.
    assert lw.watch(model, HELD_OUT, measures=BOTH[:1], out=tmp_path / "broken")(0)["notes"]


# TensorBoard


@pytest.mark.parametrize("how", BEGIN)
def test_without_its_package_tensorboard_is_refused_in_one_line(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install tensorboard.*measures\.jsonl"):
        BEGIN[how](out=tmp_path, tensorboard=True)
    BEGIN[how](out=tmp_path)


def test_scalars_are_the_numbers_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[tuple[str, int], float] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written[tag, step] = value

        def flush(self) -> None:
            written["flushed", 0] = 1.0

    package = types.ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    log = lw.watch(llama(), HELD_OUT, measures=BOTH, out=tmp_path, tensorboard=True)
    log.now(7, loss=2.0)
    assert written.pop(("flushed", 0))
    [line] = lines(tmp_path)
    expected = {("loss", 7): 2.0}
    for name, table in line["measures"].items():
        *index, values = table.values()
        expected |= {(f"{name}/{' '.join(map(str, key))}", 7): x for key, x in zip(zip(*index), values)}
    assert written == expected
    assert ("residual_contribution/1 mlp", 7) in written
    assert ("loss_sharpness/2 rise", 7) in written


# The Trainer


def drive(callback: Any, model: nn.Module, states: list[TrainerState]) -> None:
    """What a Trainer does with a callback."""
    for k, state in enumerate(states):
        event = callback.on_train_begin if k == 0 else callback.on_step_end
        event(None, state, TrainerControl(), model=model, processing_class=None)
    callback.on_train_end(None, states[-1], TrainerControl(), model=model)


@pytest.mark.parametrize("steps, expected", [(5, [0, 2, 4, 5]), (4, [0, 2, 4])])
def test_the_callback_logs_the_start_every_few_steps_and_the_end_once(
    steps: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    now = Watch.now
    monkeypatch.setattr(
        Watch, "now", lambda log, step, **numbers: (measured.append(step), now(log, step, **numbers))[1]
    )
    history = [{"loss": 3.0, "step": 1}, {"eval_loss": 2.0, "step": 1}]
    states = [TrainerState(global_step=k, log_history=history if k > 1 else []) for k in range(steps + 1)]
    drive(lw.Callback(HELD_OUT, every=2, measures=BOTH[:1], out=tmp_path), llama(), states)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == measured == expected
    assert [(line.get("loss"), line.get("loss_step")) for line in found] == [(None, None)] + [(3.0, 1)] * len(found[1:])


def test_other_processes_leave_the_measuring_to_the_main_one(tmp_path: Path) -> None:
    states = [TrainerState(global_step=k, is_world_process_zero=False) for k in range(3)]
    drive(lw.Callback(HELD_OUT, every=1, out=tmp_path), llama(), states)
    assert not (tmp_path / "measures.jsonl").exists()


def test_text_is_read_with_the_tokenizer_of_the_trainer(tmp_path: Path, tiny_model: nn.Module, tokenizer: Any) -> None:
    callback = lw.Callback(["The stream grows with depth. " * 5], measures=BOTH[:1], out=tmp_path)
    callback.on_train_begin(None, TrainerState(), TrainerControl(), model=tiny_model, processing_class=tokenizer)
    assert [line["step"] for line in lines(tmp_path)] == [0]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_a_trainer_trains_to_the_same_bits(half: bool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")
    from transformers import Trainer, TrainingArguments

    def train(*callbacks: Any) -> nn.Module:
        model = llama(attention_dropout=0.2)
        arguments = TrainingArguments(
            str(tmp_path / "trainer"), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=2,
            save_strategy="no", report_to=[], use_cpu=True, bf16=half, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        examples = [{"input_ids": ids, "labels": ids} for ids in token_ids(24, seed=3)]
        Trainer(model, arguments, train_dataset=examples, callbacks=[*callbacks]).train()
        return model

    alone = train()
    watched = train(lw.Callback(HELD_OUT, every=4, measures=[*BOTH, "first_order_skip"], out=tmp_path / "run"))
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 4, 6]
    # The model as it is trained, outside of what mixed precision wraps it in.
    fresh = llama()
    fresh.load_state_dict(watched.state_dict())
    survey = lw.survey(fresh, HELD_OUT, only=[BOTH[0]])
    assert lines(tmp_path / "run")[-1]["measures"][BOTH[0]] == columns(survey[BOTH[0]])


def test_the_page_on_watching_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "watch.md").read_text()
    monkeypatch.chdir(tmp_path)
    model = llama().train()
    known = {
        "model": model,
        "held_out": HELD_OUT,
        "batches": [{"input_ids": token_ids(seed=k), "labels": token_ids(seed=k)} for k in range(5)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, known)  # the page is ours
    assert [line["step"] for line in lines(tmp_path / "runs" / "x")] == [2, 4, 5]
    shown = capsys.readouterr().out
    assert all(block in shown for block in ("model", "step"))
