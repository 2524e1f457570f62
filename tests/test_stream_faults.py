"""A walk that is killed, interrupted, or finds its disk full or its files damaged: it says so, and can go on."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import fails
from test_cli import run as command
from torch import Tensor, nn
from walking import asked, assert_same_answer, assert_same_tables, by_hand, data_for, hurry, opened, times_read, walked
from zoo import llama, t5, token_ids

from layerwright import verbs
from layerwright.core import engine
from layerwright.core.checksums import write_manifest
from layerwright.core.errors import UserError
from layerwright.core.packet import Packet
from layerwright.core.recording import Recording
from layerwright.core.registry import choose
from layerwright.core.runfolder import RunFolder
from layerwright.core.shards import Checkpoint
from layerwright.core.stack import Stack
from layerwright.core.stream import Walk
from layerwright.core.wiring import Wiring


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks."""
    path = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5, whose first block hands the position biases on to the others."""
    path = tmp_path_factory.mktemp("models") / "t5"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5().save_pretrained(path)
    return path


IDS = {"input_ids": token_ids()}
SIDES = IDS | {"decoder_input_ids": token_ids(tokens=10, seed=2)}


def request(folder: Path, out: Path | None, **more: Any) -> engine.Request:
    side = {"blocks": "decoder.block"} if folder.name == "t5" else {}
    return asked(folder, data_for(torch.nn.Linear(1, 1), SIDES if side else IDS), out=out, **side, **more)


@pytest.fixture(scope="module")
def whole(folder: Path, t5_folder: Path) -> Iterator[Callable[..., engine.Answer]]:
    """The answer of a walk that nothing disturbed, made once for each request."""
    known: dict[str, engine.Answer] = {}
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)

        def of(path: Path, **more: Any) -> engine.Answer:
            key = f"{path} {more}"
            if key not in known:
                known[key] = engine.by_walk(request(path, None, **more))
            return known[key]

        yield of


def stop_at(patch: pytest.MonkeyPatch, record: str, before: bool) -> None:
    """Let the process end before or after a record is committed."""
    real = RunFolder.commit

    def commit(self: RunFolder, name: str, packet: Packet) -> None:
        if name == record and before:
            raise Killed
        real(self, name, packet)
        if name == record:
            raise Killed

    patch.setattr(RunFolder, "commit", commit)


def killed(request: engine.Request, record: str, before: bool = False) -> None:
    """A walk whose process ends at a record."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, record, before)
        with pytest.raises(Killed):
            engine.by_walk(request)


STEPS = ("bottom", "up-0000", "up-0001", "up-0002", "top", "down-0002", "down-0001", "down-0000")


def block_of(name: str) -> int | None:
    """Of a weight of Llama."""
    return int(name.split(".")[2]) if ".layers." in name else None


@pytest.mark.parametrize(
    "step, before", [(k, False) for k in range(len(STEPS))] + [(STEPS.index(name), True) for name in STEPS[0:6:2]]
)
def test_a_walk_killed_at_a_record_goes_on_after_the_last_one(
    step: int, before: bool, folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    killed(request(folder, tmp_path), STEPS[step], before)
    kept = STEPS[: step + (not before)]
    assert sorted(file.name for file in (tmp_path / "walk" / "records").glob("*")) == sorted(kept)
    found, reads = walked(request(folder, tmp_path))
    assert_same_answer(found, whole(folder))
    assert found.recording.checks == whole(folder).recording.checks
    for name, times in reads.items():
        block = block_of(name)
        if block is not None:
            up, down = f"up-{block:04d}" not in kept, f"down-{block:04d}" not in kept
            # The uppermost block is there for both where the walk turns.
            assert times == (up or down if block == 2 else up + down), name


@pytest.mark.parametrize("step", ["beside-0000", "up-0000", "up-0001", "top", "down-0001"])
def test_what_a_block_hands_on_survives(
    step: str, t5_folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    killed(request(t5_folder, tmp_path), step)
    assert_same_answer(engine.by_walk(request(t5_folder, tmp_path)), whole(t5_folder))


class Gated(nn.Module):
    """Its parts are scaled by numbers of its own, which only the stored weights tell."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.mlp = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
        self.gates = nn.Parameter(0.1 + torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gates[0] * self.mixer(x)
        return x + self.gates[1] * self.mlp(x)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Linear(8, 16), nn.ModuleList(Gated() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_what_was_learned_of_the_blocks_survives(tmp_path: Path) -> None:
    """Sublayers, and notes on broken weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = Tower(), torch.randn(3, 6, 8)
    with torch.no_grad():
        model.blocks[0].mlp[0].bias[1] = torch.inf
        model.blocks[3].mixer.weight[1, 2] = torch.nan

    def walk(folder: Path, model: nn.Module) -> tuple[Stack, Recording]:
        skeleton = by_hand(model, tmp_path / f"model-{len([*tmp_path.iterdir()])}")
        wiring = Wiring.find(skeleton, inputs)
        with RunFolder.opened(folder, {"seed": 0}) as run:
            made = Walk(skeleton, wiring, [inputs], choose("standard"), run, sequences=3)
            done = made.run()
            return made.stack, done

    stack, expected = walk(tmp_path / "whole", copy.deepcopy(model))
    assert len({part.scale for parts in stack.parts for part in parts}) > 4
    assert len(expected.notes) > 1
    for step in ("up-0001", "top"):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step, before=False)
            with pytest.raises(Killed):
                walk(tmp_path / step, copy.deepcopy(model))
        again, found = walk(tmp_path / step, copy.deepcopy(model))
        assert again.parts == stack.parts
        assert (found.notes, found.checks) == (expected.notes, expected.checks)
        assert_same_tables(found, expected)


def test_a_walk_killed_again_and_again_arrives(
    folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    seen: list[Checkpoint] = []
    for step in STEPS[1::2]:
        with opened() as checkpoints:
            killed(request(folder, tmp_path), step)
        seen += checkpoints
    expected = whole(folder)  # it may be made only now, and reads the weights as well
    with opened() as checkpoints:
        assert_same_answer(engine.by_walk(request(folder, tmp_path)), expected)
    for name, times in times_read([*seen, *checkpoints]).items():
        # A block that was being read ahead when the process ended is read again.
        assert times <= 4 or block_of(name) is None, name


def writes(patch: pytest.MonkeyPatch, fail: int, error: Callable[[], BaseException]) -> list[str]:
    """Let write number `fail` into a walk's folder, or into a result beside it, end halfway; the names written to."""
    seen: list[str] = []
    real = Path.open

    class Halfway:
        def __init__(self, stream: Any, name: str) -> None:
            self._stream, self._name = stream, name

        def __enter__(self) -> Halfway:
            return self

        def __exit__(self, *args: object) -> None:
            self._stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def write(self, content: Any) -> int:
            seen.append(self._name)
            if len(seen) == fail + 1:
                self._stream.write(content[: len(content) // 2])
                raise error()
            return self._stream.write(content)

    def opening(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        stream = real(self, mode, *args, **more)
        return Halfway(stream, self.name) if set(mode) & set("wa+") else stream

    patch.setattr(Path, "open", opening)
    return seen


SOME = ("skip_effect", "first_order_skip")


def test_a_walk_killed_while_it_writes_goes_on(
    folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    k = 0
    while True:
        out = tmp_path / str(k)
        try:
            with pytest.MonkeyPatch.context() as patch:
                seen = writes(patch, k, Killed)
                engine.by_walk(request(folder, out, only=SOME))
            break
        except Killed:
            found = engine.by_walk(request(folder, out, only=SOME))
            assert_same_tables(found.recording, whole(folder, only=SOME).recording)
        k += 7  # of about a hundred
    assert k > 70
    assert {"0000-state-0003", "0001-skips-0002", "0000-gradient-0000"} <= set(seen)


def refusal(work: Callable[[], object]) -> str:
    """What the one line of an error says; nothing where there is none."""
    try:
        work()
    except UserError as error:
        return str(error) if "\n" not in str(error) else "several lines"
    return ""


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def contents(out: Path) -> dict[str, bytes]:
    """Every result file, without the walk beside them."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and file.relative_to(out).parts[0] != "walk"
    }


def test_a_disk_that_is_full_at_any_write_is_one_error_and_costs_nothing(tmp_path: Path) -> None:
    llama(num_hidden_layers=2).save_pretrained(tmp_path / "model")
    asked_for: dict[str, Any] = {"only": ["first_order_skip"], "stream": "always"}
    older = verbs.survey(tmp_path / "model", IDS, only=["block_influence"], stream="never", out=tmp_path / "older")
    expected = verbs.survey(tmp_path / "model", IDS, **asked_for)
    before = contents(tmp_path / "older")
    assert {"survey.json", "tables/block_influence.csv", "report.html"} == set(before)
    for k in range(1000):
        out = Path(shutil.copytree(tmp_path / "older", tmp_path / f"out-{k}"))
        with pytest.MonkeyPatch.context() as patch:
            seen = writes(patch, k, full)
            said = refusal(lambda out=out: verbs.survey(tmp_path / "model", IDS, **asked_for, out=out))
        if not said:
            break
        assert "No space left on device; free some space" in said
        assert contents(out) == before, seen[-1]
        if k % 4 == 0:
            found = verbs.survey(tmp_path / "model", IDS, **asked_for, out=out)
            pd.testing.assert_frame_equal(found["first_order_skip"], expected["first_order_skip"], check_exact=True)
            assert json.loads((out / "survey.json").read_text())["tables"].keys() == {"first_order_skip"}
            assert not (out / "walk").exists()
    assert {"run.json", "0000-state-0000", "up-0001", "0000-gradient-0001", "down-0000"} <= {
        name.strip(".").split(".")[0] + (".json" if "run" in name else "") for name in seen
    }
    assert len(seen) == k > 20
    assert older.tables.keys() == {"block_influence"}


def npz(path: Path, ids: torch.Tensor) -> Path:
    np.savez(path, input_ids=ids.numpy())
    return path


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize(
    "signals",
    [
        [(signal.SIGTERM, "up-0001")],
        pytest.param(
            [(signal.SIGINT, "up-0001"), (signal.SIGKILL, "up-0003"), (signal.SIGTERM, "top")], marks=pytest.mark.slow
        ),
    ],
    ids=["one", "three"],
)
def test_signals_in_the_middle_of_a_block(
    signals: list[tuple[signal.Signals, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama(num_hidden_layers=6).save_pretrained(tmp_path / "model")
    arguments = ["survey", tmp_path / "model", "--arrays", npz(tmp_path / "data.npz", token_ids(32, 128))]
    arguments += ["--stream", "always", "--only", "skip_effect", "first_order_skip", "--out"]
    out = tmp_path / "out"
    for number, record in signals:
        program = [sys.executable, "-m", "layerwright", *map(str, arguments), str(out)]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until((out / "walk" / "records" / record).exists, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == CODES[number], stderr
        assert stdout == ""
        assert "Traceback" not in stderr
        if number != signal.SIGKILL:
            assert stderr.splitlines()[-1].startswith("stopped by")
            assert [*out.rglob("*.partial")] == []
        assert [file.name for file in out.iterdir()] == ["walk"]
    assert not (out / "walk" / "records" / "down-0000").exists()
    assert command(capsys, *arguments, out)[0] == 0
    assert command(capsys, *arguments, tmp_path / "undisturbed")[0] == 0
    found, expected = contents(out), contents(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected if name.endswith(".csv"))
    assert not (out / "walk").exists()


KILLED = """
import os, signal, sys
from layerwright.core.recording import Recording
from layerwright.core.registry import choose
from layerwright.core.runfolder import RunFolder

real = RunFolder.commit

def commit(self, name, packet):
    real(self, name, packet)
    os.kill(os.getpid(), signal.SIGKILL)

RunFolder.commit = commit
from layerwright import cli
cli.main()
"""


@pytest.mark.slow
def test_sigkill_after_every_record_in_turn(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["survey", folder, "--arrays", npz(tmp_path / "data.npz", token_ids()), "--stream", "always", "--out"]
    for k, step in enumerate(STEPS):
        program = [sys.executable, "-c", KILLED, *map(str, arguments), str(tmp_path / "out")]
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (tmp_path / "out" / "walk" / "records" / step).exists()
        assert len([*(tmp_path / "out" / "walk" / "records").iterdir()]) == k + 1
    assert command(capsys, *arguments, tmp_path / "out")[0] == 0
    assert command(capsys, *arguments, tmp_path / "undisturbed")[0] == 0
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "undisturbed")
    assert len(expected) > 12
    assert all(found[name] == expected[name] for name in expected if name.endswith(".csv"))


# What is asked again must be what was begun


def changed_folder(change: str, folder: Path, target: Path) -> Path:
    copy = Path(shutil.copytree(folder, target))
    if change == "touched":
        (copy / "model.safetensors").touch()
    elif change == "configuration":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    elif change == "weights":
        weights = load_file(copy / "model.safetensors")
        save_file({name: x * 1.01 for name, x in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    elif change == "checksums":
        write_manifest(copy, {})
    return copy


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed 0 where 1"),
    "measures": ({"only": SOME}, "measures ["),
    "options": ({"options": {"effective_depth": {"kl_share": 0.3}}}, "options.effective_depth null where"),
    "dtype": ({"dtype": "bfloat16"}, 'dtype null where "bfloat16"'),
    "blocks": ({"blocks": "model.layers"}, 'blocks null where "model.layers"'),
    "data": ({"ids": token_ids(seed=9)}, 'data "'),
    "batches": ({"batch": 1}, "batches [2, 1] where [1, 1, 1]"),
    "prefix": ({"prefix": 2}, "prefix 0 where 2"),
    "touched": ({}, "model.files.model.safetensors.mtime_ns"),
    "weights": ({}, "model.files.model.safetensors.mtime_ns"),
    "configuration": ({}, "model.config"),
    "checksums": ({}, "model.checksums null where"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk that was killed after its second block."""
    out = tmp_path_factory.mktemp("begun")
    killed(request(folder, out), "up-0001")
    return out


@pytest.mark.parametrize("change", CHANGED)
def test_another_run_in_the_folder_is_refused(change: str, folder: Path, begun: Path, tmp_path: Path) -> None:
    more, words = CHANGED[change]
    more = dict(more)
    ids, size, prefix = more.pop("ids", IDS["input_ids"]), more.pop("batch", 2), more.pop("prefix", 0)
    data = data_for(torch.nn.Linear(1, 1), {"input_ids": ids}, size, prefix)
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    before = {file: file.read_bytes() for file in (out / "walk" / "records").iterdir()}
    said = refusal(
        lambda: engine.by_walk(asked(changed_folder(change, folder, tmp_path / "llama"), data, out=out, **more))
    )
    assert f"holds another run, with {words}" in said
    assert "ask for the same again, remove the folder, or choose another --out" in said
    assert {file: file.read_bytes() for file in (out / "walk" / "records").iterdir()} == before


def test_the_same_model_elsewhere_goes_on(
    folder: Path, begun: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    moved = changed_folder("", folder, tmp_path / "llama")
    found, reads = walked(request(moved, out))
    assert_same_tables(found.recording, whole(folder).recording)
    assert {times for name, times in reads.items() if block_of(name) == 0} == {1}


@pytest.mark.parametrize("record", ["bottom", "up-0000", "up-0001"])
def test_a_damaged_record_is_made_again(
    record: str, folder: Path, begun: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    file = out / "walk" / "records" / record
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert_same_answer(engine.by_walk(request(folder, out)), whole(folder))


def test_a_damaged_record_of_what_is_handed_on_does_not_change_a_number(
    t5_folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    killed(request(t5_folder, tmp_path), "up-0000")
    file = tmp_path / "walk" / "records" / "beside-0000"
    file.write_bytes(file.read_bytes()[:-1])
    assert_same_answer(engine.by_walk(request(t5_folder, tmp_path)), whole(t5_folder))


@pytest.mark.parametrize("fault", ["gone", "short", "damaged"])
def test_a_lost_state_is_an_error(fault: str, folder: Path, begun: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    file = out / "walk" / "states" / "0001-state-0002"
    if fault == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] if fault == "short" else b"float23".ljust(64) + content[64:])
    said = refusal(lambda: engine.by_walk(request(folder, out)))
    assert str(file) in said
    assert "start again in an empty folder" in said


def test_a_second_run_in_the_folder_is_refused_and_the_first_arrives(
    folder: Path, whole: Callable[..., engine.Answer], tmp_path: Path
) -> None:
    said: list[str] = []

    def second(stage: str, done: int, total: int) -> None:
        if stage == "up" and done == 3:
            said.append(refusal(lambda: engine.by_walk(request(folder, tmp_path))))

    assert_same_answer(engine.by_walk(request(folder, tmp_path, progress=second)), whole(folder))
    assert f"another run (process {os.getpid()} on" in said[0]
    assert f"is at work in {tmp_path}; wait for it, or choose another --out" in said[0]


# Places where nothing can be written


def test_a_file_in_place_of_the_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "walk").write_text("mine")
    data = npz(tmp_path / "data.npz", token_ids())
    line = fails(capsys, "survey", folder, "--arrays", data, "--stream", "always", "--out", tmp_path / "out")
    assert f"cannot write to {tmp_path / 'out' / 'walk'}: " in line
    assert (tmp_path / "out" / "walk").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    data = npz(tmp_path / "data.npz", token_ids())
    line = fails(capsys, "survey", folder, "--arrays", data, "--stream", "always", "--out", tmp_path / "out")
    assert f"cannot write to {tmp_path / 'out'}" in line


# Damaged models


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file, {"format": "pt"})


def renamed(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"weight_map": change(content["weight_map"])}))


NAME = "model.layers.1.mlp.up_proj.weight"


def damage(folder: Path, case: str) -> None:
    home = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / home[NAME]
    content = file.read_bytes()
    if case == "truncated":
        file.write_bytes(content[:-8])
    elif case == "missing shard":
        file.unlink()
    elif case == "flipped bit":
        checkpoint = Checkpoint.open(folder)
        write_manifest(folder, {entry.name: digest for entry, digest in checkpoint.digests()})
        place = checkpoint.entries[NAME].start + 5
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    elif case == "wrong shape":
        rewrite(file, lambda x: x | {NAME: x[NAME][:-1].clone()})
    elif case == "wrong dtype":
        rewrite(file, lambda x: x | {NAME: torch.ones(x[NAME].shape, dtype=torch.int64)})
    elif case == "missing tensor":
        rewrite(file, lambda x: {name: tensor for name, tensor in x.items() if name != NAME})
        renamed(folder, lambda home: {name: file for name, file in home.items() if name != NAME})
    elif case == "duplicate":
        other = next(shard for shard in shards(folder) if shard != file)
        rewrite(other, lambda x: x | {NAME: load_file(file)[NAME]})
    elif case == "surplus block":
        rewrite(file, lambda x: x | {NAME.replace(".1.", ".7."): x[NAME].clone()})
        renamed(folder, lambda home: home | {NAME.replace(".1.", ".7."): file.name})


DAMAGED = {
    "truncated": "is damaged or cut short",
    "missing shard": "which model.safetensors.index.json names",
    "flipped bit": f"tensor '{NAME}' in ",
    "wrong shape": f"1 weights are of another shape than the model that config.json describes ({NAME})",
    "wrong dtype": NAME,
    "missing tensor": f"1 weights are missing for the model that config.json describes ({NAME})",
    "duplicate": f"holds tensor '{NAME}' twice",
    "surplus block": "1 weights are too many for the model",
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(path, max_shard_size="6KB")
    return path


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model(case: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    damage(folder, case)
    capsys.readouterr()
    data = npz(tmp_path / "data.npz", token_ids())
    code, out, err = command(
        capsys, "survey", folder, "--arrays", data, "--stream", "always", "--out", tmp_path / "out"
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert DAMAGED[case] in err.splitlines()[-1]
    assert "Traceback" not in err
    assert contents(tmp_path / "out") == {}


def test_after_a_flipped_bit_is_mended_the_walk_goes_on(
    sharded: Path, whole: Callable[..., engine.Answer], folder: Path, tmp_path: Path
) -> None:
    mended = Path(shutil.copytree(sharded, tmp_path / "model"))
    write_manifest(mended, {entry.name: digest for entry, digest in Checkpoint.open(mended).digests()})
    file = Checkpoint.open(mended).entries[NAME].file
    content, state = file.read_bytes(), file.stat()

    def put(made: bytes) -> None:
        file.write_bytes(made)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))

    place = Checkpoint.open(mended).entries[NAME].start
    put(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert NAME in refusal(lambda: engine.by_walk(request(mended, tmp_path / "out")))
    assert (tmp_path / "out" / "walk" / "records" / "up-0000").exists()
    put(content)
    found, reads = walked(request(mended, tmp_path / "out"))
    assert_same_tables(found.recording, whole(folder).recording)
    assert {times for name, times in reads.items() if block_of(name) == 0} == {1}
