"""A run in a folder that is killed, interrupted, finds its disk full or its files damaged: it says so, and goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from zoo import gpt2, llama, token_ids

from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.packet import Packet
from layerwright.core.runfolder import RunFolder
from layerwright.report.curve import page
from layerwright.trainers import checkpoint, publish
from layerwright.trainers.checkpoint import Checkpoints
from layerwright.trainers.plain import train
from layerwright.trainers.training import Training

IDS = token_ids(40, 10)
SETTINGS: dict[str, Any] = {"steps": 6, "batch": 4, "lr": 1e-2, "every": 2}
FILES = {"config.json", "generation_config.json", "model.safetensors", "train.html", "training.json"}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(checkpoint, "_SHARD", 2**12)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three blocks, which drops a tenth of its activations in training."""
    path = tmp_path_factory.mktemp("models") / "gpt2"
    gpt2().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Training:
    """A run that nothing disturbed."""
    return train(folder, IDS, **SETTINGS)


def assert_same(found: Training, expected: Training) -> None:
    """To the last bit, but for the time it took."""
    for (name, p), q in zip(found.model.named_parameters(), expected.model.parameters()):
        assert p.equal(q), name
    assert found.curve.drop(columns="seconds").equals(expected.curve.drop(columns="seconds"))
    assert found.held_out == expected.held_out


def at_write(number: int, before: bool, error: BaseException) -> Callable[..., None]:
    """`Checkpoints.write` that ends the run at the checkpoint of this number."""
    real, seen = Checkpoints.write, []

    def write(self: Checkpoints, *args: Any) -> None:
        seen.append(args)
        if len(seen) == number and before:
            raise error
        real(self, *args)
        if len(seen) == number:
            raise error

    return write


def stopped(folder: Path, out: Path, number: int, before: bool = False, error: type[BaseException] = Killed) -> None:
    """A run whose process ends at a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "write", at_write(number, before, error()))
        with pytest.raises(error):
            train(folder, IDS, **SETTINGS, out=out, page=page)


def steps_made(patch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are made from now on."""
    from layerwright.trainers.loop import Loop

    made: list[int] = []
    real = Loop._step

    def step(self: Loop, k: int, kept: str) -> list[float]:
        made.append(k)
        return real(self, k, kept)

    patch.setattr(Loop, "_step", step)
    return made


# A finished run


def test_the_folder_of_a_finished_run_is_a_model(folder: Path, whole: Training, tmp_path: Path) -> None:
    found = train(folder, IDS, **SETTINGS, out=tmp_path, page=page)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    assert_same(found, whole)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for p, q in zip(loaded.parameters(), whole.model.parameters()):
        assert p.equal(q)
    document = json.loads((tmp_path / "training.json").read_text())
    assert document == found.to_dict() | {"run": document["run"]}
    assert (tmp_path / "train.html").read_text() == page(document)


def test_a_finished_run_is_read_and_not_made_again(
    folder: Path, whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, IDS, **SETTINGS, out=tmp_path)
    made = steps_made(monkeypatch)
    found = train(folder, IDS, **SETTINGS, out=tmp_path)
    assert made == []
    assert_same(found, whole)
    assert found.to_dict() == {
        name: x for name, x in json.loads((tmp_path / "training.json").read_text()).items() if name != "run"
    }


def test_the_tokenizer_is_saved_beside_it(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    train(tiny_folder, text_file, steps=1, length=32, out=tmp_path / "out")
    model, tokenizer, _ = load_model(tmp_path / "out")
    assert tokenizer("abc")["input_ids"] == load_model(tiny_folder)[1]("abc")["input_ids"]
    assert train(tmp_path / "out", text_file, steps=1, length=32).held_out.before > 0
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("tied", [False, True])
def test_undeclared_ties_are_saved_in_full(tied: bool, tmp_path: Path) -> None:
    """Transformers refuses to save a weight in two places unless the model declares it."""
    model = llama(tie_word_embeddings=tied).to(torch.bfloat16)
    model.model.layers[2].mlp = model.model.layers[0].mlp
    found = train(model, IDS, **SETTINGS, out=tmp_path).model
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) != tied
    loaded, _, _ = load_model(tmp_path)
    for name, x in found.state_dict().items():
        assert loaded.state_dict()[name].equal(x), name


# Stopped and gone on


@pytest.mark.parametrize("number, before", [(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)])
def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_bits(
    number: int, before: bool, folder: Path, whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(folder, tmp_path, number, before)
    assert {file.name for file in tmp_path.iterdir()} == ({"train"} if number > 1 or not before else set())
    made = steps_made(monkeypatch)
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path, page=page), whole)
    assert made == list(range(2 * (number - before), 6))
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_a_run_stopped_again_and_again_arrives(folder: Path, whole: Training, tmp_path: Path) -> None:
    for _ in range(3):
        stopped(folder, tmp_path, 1)
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)


@pytest.mark.parametrize("kind", ["tied", "bfloat16", "teacher", "accumulated", "live", "unused"])
def test_every_kind_of_run_goes_on(kind: str, folder: Path, tmp_path: Path) -> None:
    model: Any = folder
    options = dict(SETTINGS)
    if kind == "tied":
        model = gpt2()
        model.transformer.h[2].mlp = model.transformer.h[0].mlp
    elif kind == "bfloat16":
        model = gpt2().to(torch.bfloat16)
        options["dtype"] = "bfloat16"
    elif kind == "teacher":
        options |= {"teacher": llama(), "alpha": 0.3}
    elif kind == "accumulated":
        options |= {"accumulate": 3, "batch": 5}
    elif kind == "unused":
        model = gpt2()
        model.unused = nn.Parameter(torch.ones(2))
    else:
        model = gpt2()
    expected = train(model, IDS, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "write", at_write(2, False, Killed()))
        with pytest.raises(Killed):
            train(model, IDS, **options, out=tmp_path)
    assert_same(train(model, IDS, **options, out=tmp_path), expected)


def test_ctrl_c_leaves_the_last_checkpoint(folder: Path, whole: Training, tmp_path: Path) -> None:
    stopped(folder, tmp_path, 2, error=KeyboardInterrupt)
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)


def test_ctrl_c_while_a_checkpoint_is_read_leaves_it(folder: Path, whole: Training, tmp_path: Path) -> None:
    stopped(folder, tmp_path, 2)

    def read(self: Checkpoints, *args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "read", read)
        with pytest.raises(KeyboardInterrupt):
            train(folder, IDS, **SETTINGS, out=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        made = steps_made(patch)
        assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)
    assert made == [4, 5]


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_run_killed_while_its_result_is_put_in_place_goes_on(
    file: str, folder: Path, whole: Training, tmp_path: Path
) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == file and self.parent.name == "result":
            raise Killed
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            train(folder, IDS, **SETTINGS, out=tmp_path, page=page)
    assert not (tmp_path / "training.json").exists()
    assert (tmp_path / "config.json").exists() == (file == "training.json")
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path, page=page), whole)
    assert {file.name for file in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("where", ["records", "states"])
def test_after_damage_the_run_starts_again(
    damage: str, where: str, folder: Path, whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(folder, tmp_path, 2)
    file = min((tmp_path / "train" / where).glob("[!.]*"))
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    made = steps_made(monkeypatch)
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)
    assert made == list(range(6))


def test_a_checkpoint_is_in_small_packets_and_the_last_one_only(folder: Path, tmp_path: Path) -> None:
    stopped(folder, tmp_path, 2)
    files = sorted((tmp_path / "train" / "states").iterdir())
    assert {file.name[:8] for file in files} == {"00000004"}
    assert len(files) > 5
    packets = [Packet.read(file) for file in files]
    kept = {name: x for packet in packets if packet for name, x in packet.tensors.items()}
    model = gpt2()
    numbers = sum(p.numel() for p in model.parameters())
    for kind in ("value", "exp_avg", "exp_avg_sq"):
        assert sum(x.numel() for name, x in kept.items() if name.startswith(f"{kind}/")) >= numbers
    assert max(sum(x.nbytes for x in p.tensors.values()) for p in packets if p) < 2**12 + 4 * 16 * 64 * 4


# What is refused


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": 8}, "steps 6 where 8 is asked for"),
        ({"lr": 1e-3}, "lr 0.01 where 0.001 is asked for"),
        ({"seed": 1}, "seed 0 where 1 is asked for"),
        ({"accumulate": 2}, "accumulate 1 where 2 is asked for"),
        ({"dtype": "bfloat16"}, 'dtype "auto" where "bfloat16" is asked for'),
        ({"teacher": "itself"}, "alpha null where 0.5 is asked for"),
        ({"data": token_ids(41, 10)}, "data "),
        ({"model": "other"}, 'model "GPT2LMHeadModel '),
    ],
)
@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_another_run_is_refused_and_the_difference_named(
    state: str, change: dict[str, Any], words: str, folder: Path, tmp_path: Path, runs: dict[str, Path]
) -> None:
    out = runs[state]
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    options: dict[str, Any] = SETTINGS | {"data": IDS, "model": folder} | change
    if options.get("teacher"):
        options["teacher"] = folder
    if options["model"] == "other":
        options["model"] = llama()
    with pytest.raises(UserError) as error:
        train(**options, out=out)
    assert f"with {words}" in str(error.value)
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)
    kept = {file: file.read_bytes() for file in before if file.name not in ("lock", "owner.json")}
    assert all(kept[file] == before[file] for file in kept)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that was stopped and one that is finished."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("stopped", "finished")}
    stopped(folder, found["stopped"], 2)
    train(folder, IDS, **SETTINGS, out=found["finished"])
    return found


def test_a_folder_with_other_things_is_refused(folder: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match=r"is not empty: it holds config\.json, generation_config\.json"):
        train(folder, IDS, **SETTINGS, out=folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "training.json").write_text("[]")
    with pytest.raises(UserError, match="is not valid JSON: holds a list"):
        train(folder, IDS, **SETTINGS, out=tmp_path)


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps_made(monkeypatch)
    model = nn.Linear(3, 2)
    data = {"input": torch.randn(40, 3), "labels": torch.arange(40) % 2}
    with pytest.raises(UserError, match="Linear has no save_pretrained"):
        train(model, data, **SETTINGS, out=tmp_path / "out")
    assert made == []
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with (
        RunFolder.opened(tmp_path / publish.RUN, {"seed": 0}),
        pytest.raises(UserError, match=f"another run .* is at work in {tmp_path}"),
    ):
        train(folder, IDS, **SETTINGS, out=tmp_path)


def test_nothing_is_kept_of_a_run_that_failed_before_its_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nan (at|after) step 2"):
        train(llama(), IDS, **(SETTINGS | {"lr": 1e35}), out=tmp_path)
    assert [*tmp_path.iterdir()] == []
    train(llama(), IDS, **SETTINGS, out=tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = llama()
    calls: list[bool] = []

    def spoil(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        calls.append(module.training)
        return out * torch.nan if sum(calls) == 5 else out

    handle = model.lm_head.register_forward_hook(spoil)
    with pytest.raises(UserError) as error:
        train(model, IDS, **SETTINGS, out=tmp_path)
    assert str(error.value) == (
        "the loss is nan at step 5 of 6; try a lower learning rate (got 0.01) or a longer warmup (got 1); the state "
        f"after step 4 is kept in {tmp_path / 'train'}"
    )
    handle.remove()
    assert_same(train(model, IDS, **SETTINGS, out=tmp_path), train(llama(), IDS, **SETTINGS))


# Disks


def full_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the disk be full after so many files are begun."""
    real, seen = Path.open, []

    def opening(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "w" in mode:
            seen.append(self)
            if len(seen) > writes:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **more)

    patch.setattr(Path, "open", opening)


@pytest.mark.parametrize("writes", [0, 1, 2, 9, 40])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    writes: int, folder: Path, whole: Training, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_after(patch, writes)
        with pytest.raises(UserError) as error:
            train(folder, IDS, **SETTINGS, out=tmp_path)
    assert "No space left on device" in str(error.value)
    assert "\n" not in str(error.value)
    kept = [*tmp_path.rglob("*.partial")]
    assert kept == []
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)


def test_a_disk_full_at_the_end_leaves_the_training(
    folder: Path, whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def save_pretrained(self: nn.Module, where: Path, **more: Any) -> None:
        where.mkdir(parents=True)
        (where / "config.json").write_text("{}")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", save_pretrained)
        with pytest.raises(UserError) as error:
            train(folder, IDS, **SETTINGS, out=tmp_path)
    assert "No space left on device" in str(error.value)
    assert "the training is kept there" in str(error.value)
    assert {file.name for file in tmp_path.iterdir()} == {"train"}
    assert not (tmp_path / "train" / "result").exists()
    made = steps_made(monkeypatch)
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path), whole)
    assert made == []


def test_where_nothing_can_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        train(folder, IDS, **SETTINGS, out=tmp_path / "file")


# Real processes

CHILD = """
import sys
from pathlib import Path
import torch
from layerwright.trainers.plain import train
torch.set_num_threads(1)
ids = torch.randint(0, 40, (40, 10), generator=torch.Generator().manual_seed(1))
def say(stage, done, total):
    print(stage, done, flush=True)
train(Path(sys.argv[1]), ids, steps=60, batch=4, lr=1e-2, every=5, out=Path(sys.argv[2]), progress=say)
"""


def child(folder: Path, out: Path, stop: int | None = None, number: signal.Signals = signal.SIGKILL) -> int:
    """The same training in a process of its own, stopped at a step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if stop is not None and line == f"training {stop}\n":
            process.send_signal(number)
            break
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_processes_that_are_killed_arrive_at_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert child(folder, tmp_path / "whole") == 0
    assert child(folder, tmp_path / "again", 17) == -signal.SIGKILL
    assert child(folder, tmp_path / "again", 41, signal.SIGINT) == -signal.SIGINT
    assert child(folder, tmp_path / "again") == 0
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    assert names == FILES - {"train.html"}
    for name in names - {"training.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_disk_that_is_really_full(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files: what cannot be written is said in one line, wherever it happens."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "out")], capture_output=True, text=True,
        preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode == 1
    assert "UserError: cannot write to" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "config.json").exists()
    assert child(folder, tmp_path / "out") == 0
    assert child(folder, tmp_path / "whole") == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_moving_a_stopped_run_changes_nothing(folder: Path, whole: Training, tmp_path: Path) -> None:
    stopped(folder, tmp_path / "here", 2)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_same(train(folder, IDS, **SETTINGS, out=tmp_path / "there"), whole)


@pytest.fixture
def no_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_another_number_of_threads_is_another_run(folder: Path, tmp_path: Path, no_threads: None) -> None:
    stopped(folder, tmp_path, 2)
    torch.set_num_threads(torch.get_num_threads() + 1)
    with pytest.raises(UserError, match=r"threads \d where \d is asked for"):
        train(folder, IDS, **SETTINGS, out=tmp_path)
