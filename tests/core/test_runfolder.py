"""One run at a time in a folder, and only the one that was begun there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from layerwright.core.errors import UserError
from layerwright.core.packet import Packet
from layerwright.core.runfolder import RunFolder

PACKET = Packet({"block": 1}, {"x": torch.tensor([1.0, 2.0])})
SETTINGS: dict[str, Any] = {"seed": 0, "model": {"files": {"a": 1, "b": 2}}, "measures": ["x", "y"], "dtype": None}


def refusal(folder: Path, settings: Any = SETTINGS) -> str:
    with pytest.raises(UserError) as error, RunFolder.opened(folder, settings):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_records_outlive_the_run(tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path / "out" / "walk", SETTINGS) as run:
        assert run.record("up-0001") is None
        run.commit("up-0001", PACKET)
        assert run.states().is_dir()
    with RunFolder.opened(tmp_path / "out" / "walk", SETTINGS) as run:
        found = run.record("up-0001")
        assert found is not None
        assert (found.data, found.tensors["x"].tolist()) == ({"block": 1}, [1.0, 2.0])
        assert run.record("up-0002") is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 1}, "with seed 0 where 1 is asked for"),
        ({"model": {"files": {"a": 1, "b": 3}}}, "with model.files.b 2 where 3"),
        ({"model": {"files": {"a": 1, "b": 2, "c": 3}}}, "with model.files.c null where 3"),
        ({"model": {"files": {"a": 1}}}, "with model.files.b 2 where null"),
        ({"measures": ["y"]}, 'with measures ["x", "y"] where ["y"]'),
        ({"measures": [f"measure {k}" for k in range(20)]}, 'where ["measure 0", '),
        ({"dtype": "bfloat16"}, 'with dtype null where "bfloat16"'),
        ({"new": 1}, "with new null where 1"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        run.commit("bottom", PACKET)
    said = refusal(tmp_path, SETTINGS | change)
    assert f"{tmp_path} holds another run, {words}" in said or words in said
    assert len(said) < 300 + len(str(tmp_path))
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        assert run.record("bottom") is not None


def test_settings_are_compared_as_they_are_written(tmp_path: Path) -> None:
    """A tuple comes back as a list, a number as a key as text."""
    settings = {"shape": (1, 2), "sizes": {1: 2}}
    for _ in range(2):
        with RunFolder.opened(tmp_path, settings) as run:
            run.commit("bottom", PACKET)
            assert run.record("bottom") is not None


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path / "walk", SETTINGS) as run:
        run.commit("bottom", PACKET)
        said = refusal(tmp_path / "walk", SETTINGS | {"seed": 1})
        assert f"another run (process {os.getpid()} on " in said
        assert f"is at work in {tmp_path}; wait for it, or choose another --out" in said
        assert run.record("bottom") is not None
    with RunFolder.opened(tmp_path / "walk", SETTINGS):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from layerwright.core.runfolder import RunFolder
with RunFolder.opened(Path(sys.argv[1]), {"seed": 0}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert f"another run (process {process.pid} on " in refusal(tmp_path, {"seed": 0})
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "lock").exists()
    with RunFolder.opened(tmp_path, {"seed": 0}):
        assert json.loads((tmp_path / "owner.json").read_text())["process"] == os.getpid()


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), RunFolder.opened(tmp_path, SETTINGS):
            raise ZeroDivisionError


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_one_damaged_record_and_all_are_made_again(damage: str, tmp_path: Path) -> None:
    """Later steps were made from it, and the streams that it was made from are gone."""
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        run.commit("up-0000", PACKET)
        run.commit("up-0001", PACKET)
        (run.states() / "0000-state-0001").write_bytes(b"x")
    file = tmp_path / "records" / "up-0000"
    content = file.read_bytes()
    file.write_bytes({"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1], "empty": b""}[damage])
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        assert run.record("up-0000") is run.record("up-0001") is None
        assert [*run.states().iterdir()] == []


def test_a_record_that_was_being_written_is_none(tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        run.commit("up-0000", PACKET)
    (tmp_path / "records" / ".up-0001.77.partial").write_bytes(b"half")
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        assert run.record("up-0000") is not None
        assert run.record("up-0001") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_records_of_an_unknown_run_are_not_used(content: bytes, tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        run.commit("bottom", PACKET)
    (tmp_path / "run.json").write_bytes(content)
    with RunFolder.opened(tmp_path, SETTINGS) as run:
        assert run.record("bottom") is None
    assert "holds another run" in refusal(tmp_path, {"seed": 5})


def test_a_finished_run_leaves_nothing_but_to_another_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "walk"
    with RunFolder.opened(folder, SETTINGS):
        pass
    with RunFolder.opened(folder, SETTINGS) as other:
        other.commit("bottom", PACKET)
        RunFolder(folder).finished()
        assert other.record("bottom") is not None
    RunFolder(folder).finished()
    RunFolder(folder).finished()
    assert [*tmp_path.iterdir()] == []


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert f"cannot write to {tmp_path / 'file'}: File exists; choose another --out" in refusal(tmp_path / "file")
    assert "Not a directory; choose another --out" in refusal(tmp_path / "file" / "walk")
    with RunFolder.opened(tmp_path / "walk", SETTINGS) as run, ExitStack() as full:
        patch = full.enter_context(pytest.MonkeyPatch.context())

        def mkdir(self: Path, *args: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, "mkdir", mkdir)
        with pytest.raises(UserError, match="No space left on device; choose another --out"):
            run.states()

    def acquire(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert "is on a file system without locks; choose another --out" in refusal(tmp_path / "walk")
