"""Jobs give the same bits in this process and in local workers, and what goes wrong with one leaves the others."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loky import ProcessPoolExecutor
from sample_jobs import KEYS, Parcel, alive, arithmetic, counted, processes, ran, until

from layerwright.core.errors import UserError
from layerwright.core.jobs import JobsFailed, parse_engine, run_jobs, seed_of
from layerwright.core.packet import Packet

GIVEN = {"scale": 0.5, "weight": np.arange(1000.0)}
ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and /proc")


def content(packets: dict[str, Packet]) -> dict[str, bytes]:
    return {key: packet.to_bytes() for key, packet in packets.items()}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"log": str(tmp_path / "log")}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def drive(call: str) -> subprocess.Popen[str]:
    """A process of its own that runs `run_jobs(counted, KEYS, …)`."""
    code = "from pathlib import Path; from sample_jobs import *; from layerwright.core.jobs import run_jobs\n"
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    return subprocess.Popen([sys.executable, "-c", f"{code}run_jobs(counted, KEYS, {call})"], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def test_local_workers_give_the_bits_of_this_process_in_any_order() -> None:
    serial = run_jobs(arithmetic, KEYS, GIVEN)
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    pooled = run_jobs(arithmetic, shuffled, GIVEN, engine=2)
    assert list(serial) == KEYS
    assert list(pooled) == shuffled
    assert content(pooled) == content(serial)
    assert {packet.data["threads"] for packet in pooled.values()} == {1}


def test_the_payload_reaches_each_worker_once(log: Path, tmp_path: Path) -> None:
    run_jobs(counted, KEYS, Parcel(log=str(log), unpacked=str(tmp_path / "unpacked"), sleep=0.2), engine=2)
    arrived = processes(tmp_path / "unpacked")
    assert len(arrived) == len(set(arrived)) <= 2
    assert set(arrived) == set(processes(log))


def test_settings_of_the_caller_change_no_bit_and_are_put_back() -> None:
    expected = content(run_jobs(arithmetic, KEYS[:2], GIVEN))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    try:
        with torch.inference_mode():
            found = content(run_jobs(arithmetic, KEYS[:2], GIVEN))
            assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_the_caller_is_put_back_after_a_job_that_raises(given: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(JobsFailed):
            run_jobs(counted, KEYS, {**given, "raise": KEYS})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_job_has_its_own_seed_which_follows_the_seed_of_the_run() -> None:
    first, second = (run_jobs(arithmetic, KEYS, GIVEN, seed=seed) for seed in (0, 1))
    assert [packet.data["seed"] for packet in first.values()] == [seed_of(0, key) for key in KEYS]
    draws = {tuple(packet.tensors["draws"].tolist()) for packet in [*first.values(), *second.values()]}
    assert len(draws) == 2 * len(KEYS)


@pytest.mark.parametrize("engine", ["serial", "2"])
def test_a_job_that_raises_is_named_and_the_others_finish(engine: str, given: dict[str, Any], tmp_path: Path) -> None:
    bad = [KEYS[1], KEYS[4]]
    with pytest.raises(JobsFailed) as caught:
        run_jobs(counted, KEYS, {**given, "raise": bad}, engine=engine, store=tmp_path / "store")
    assert str(caught.value) == (
        f"2 of 6 jobs failed ('block 1', 'block 4'), the first with ValueError: no number in block 1; the others are "
        f"kept in {tmp_path / 'store'}"
    )
    assert list(caught.value.failures) == bad
    assert "in counted" in caught.value.failures[KEYS[4]]  # the traceback
    assert ran(tmp_path / "log") == dict.fromkeys(KEYS, 1)
    assert list(run_jobs(counted, KEYS, given, store=tmp_path / "store")) == KEYS
    assert ran(tmp_path / "log") == {key: 1 + (key in bad) for key in KEYS}


def test_many_failures_are_told_in_one_line(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^6 of 6 jobs failed \('block 0', 'block 1', 'block 2', …\)") as caught:
        run_jobs(counted, KEYS, {**given, "raise": KEYS})
    assert "\n" not in str(caught.value)


def test_what_is_no_packet_or_no_plain_data_is_a_failure() -> None:
    def gives(key: str, seed: int, payload: Any) -> Any:
        return {"none": None, "nan": Packet({"x": float("nan")}, {}), "exit": None if key != "exit" else sys.exit(3)}[
            key
        ]

    with pytest.raises(JobsFailed) as caught:
        run_jobs(gives, ["none", "nan", "exit"])
    first = {key: text.splitlines()[0] for key, text in caught.value.failures.items()}
    assert first["none"] == "TypeError: the job gave NoneType; expected a Packet"
    assert first["nan"].startswith("ValueError")
    assert first["exit"] == "SystemExit: 3"


@posix
def test_a_dead_worker_is_replaced_and_a_job_that_kills_each_worker_is_named(
    given: dict[str, Any], log: Path, tmp_path: Path
) -> None:
    expected = content(run_jobs(counted, KEYS, {"log": os.devnull}))
    done: list[tuple[int, int]] = []
    with pytest.raises(JobsFailed, match=r"\('block 2'\), the first with its worker process died \(2 times\)"):
        run_jobs(counted, KEYS, {**given, "die_once": [KEYS[0]], "die": [KEYS[2]]}, engine=2, retries=1,
                 store=tmp_path / "store", progress=lambda *step: done.append(step))  # fmt: skip
    assert ran(log) == {key: 1 + (key in (KEYS[0], KEYS[2])) for key in KEYS}
    assert done == [(k, 6) for k in range(7)]
    assert content(run_jobs(counted, KEYS, given, store=tmp_path / "store")) == expected
    assert sum(ran(log).values()) == len(KEYS) + 3


def test_what_is_in_the_store_is_not_run_again(given: dict[str, Any], log: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run_jobs(counted, KEYS[:3], given, store=store, settings={"width": 8})
    done: list[tuple[int, int]] = []
    again = run_jobs(counted, KEYS, given, store=store, settings={"width": 8}, progress=lambda *step: done.append(step))
    assert content(again) == content(run_jobs(counted, KEYS, given | {"log": str(tmp_path / "other")}))
    assert all(content(again)[key] == value for key, value in content(first).items())
    assert ran(log) == dict.fromkeys(KEYS, 1)
    assert done == [(k, 6) for k in range(3, 7)]


@pytest.mark.parametrize("change", [{"settings": {"width": 9}}, {"seed": 1}, {"function": arithmetic}])
def test_a_result_of_other_settings_is_made_again(change: dict[str, Any], tmp_path: Path) -> None:
    payload = {"log": str(tmp_path / "log"), **GIVEN}
    usual = {"function": counted, "settings": {"width": 8}, "seed": 0, "store": tmp_path / "store"}
    run_jobs(keys=KEYS[:1], payload=payload, **usual)
    files = list((tmp_path / "store").iterdir())
    changed = run_jobs(keys=KEYS[:1], payload=payload, **(usual | change))
    fresh = run_jobs(keys=KEYS[:1], payload=payload, **(usual | change | {"store": None}))
    assert content(changed) == content(fresh)
    assert list((tmp_path / "store").iterdir()) == files
    before = len(processes(tmp_path / "log"))
    run_jobs(keys=KEYS[:1], payload=payload, **usual)
    assert len(processes(tmp_path / "log")) == before + 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + b"x" + b[51:], lambda b: b"{}"])
def test_a_damaged_file_is_made_again(
    damage: Callable[[bytes], bytes], given: dict[str, Any], log: Path, tmp_path: Path
) -> None:
    expected = content(run_jobs(counted, KEYS[:2], given, store=tmp_path / "store"))
    file = next(file for file in (tmp_path / "store").iterdir() if file.name.startswith("block-1-"))
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert content(run_jobs(counted, KEYS[:2], given, store=tmp_path / "store")) == expected
    assert ran(log) == {KEYS[0]: 1, KEYS[1]: 2}
    assert file.read_bytes() == whole


def test_a_foreign_packet_in_the_store_is_overwritten(given: dict[str, Any], log: Path, tmp_path: Path) -> None:
    run_jobs(counted, KEYS[:1], given, store=tmp_path / "store")
    (file,) = (tmp_path / "store").iterdir()
    for data in ({"block": 3}, {"key": KEYS[0]}, ["key"]):
        Packet(data, {}).write(file)
        run_jobs(counted, KEYS[:1], given, store=tmp_path / "store")
    assert ran(log) == {KEYS[0]: 4}


def test_keys_that_read_alike_or_are_no_file_names_have_files_of_their_own(
    given: dict[str, Any], tmp_path: Path
) -> None:
    keys = ["a/b", "a:b", "../../etc", ".", "", "Ä", "x" * 500, "A b", "a b"]
    run_jobs(counted, keys, {"log": os.devnull}, store=tmp_path / "store")
    assert len(list((tmp_path / "store").iterdir())) == len(keys)
    assert list(run_jobs(counted, keys, given, store=tmp_path / "store")) == keys
    assert ran(tmp_path / "log") == {}


def test_a_store_that_cannot_be_used_is_told_before_the_first_job(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        run_jobs(counted, KEYS, given, store=tmp_path / "file")
    run_jobs(counted, KEYS[:1], given, store=tmp_path / "store")
    (file,) = (tmp_path / "store").iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="cannot read"):
        run_jobs(counted, KEYS, given, store=tmp_path / "store")
    assert ran(tmp_path / "log") == {KEYS[0]: 1}


@posix
@pytest.mark.slow
def test_after_a_killed_driver_only_unfinished_jobs_run(given: dict[str, Any], log: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    driver = drive(f"{given | {'hang': KEYS[4:]}!r}, engine=2, store=Path({str(store)!r})")
    until(lambda: set(ran(log)) == set(KEYS) and len(list(store.glob("*.packet"))) == 4)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    until(lambda: not any(map(alive, processes(log))))
    expected = content(run_jobs(counted, KEYS, {"log": os.devnull}))
    assert content(run_jobs(counted, KEYS, given, store=store)) == expected
    assert ran(log) == {key: 1 + (key in KEYS[4:]) for key in KEYS}


@posix
@pytest.mark.parametrize("to_all", [pytest.param(False, marks=pytest.mark.slow), True])  # True: as from a terminal
def test_ctrl_c_ends_driver_and_workers(to_all: bool, given: dict[str, Any], log: Path) -> None:
    driver = drive(f"{given | {'hang': KEYS}!r}, engine=2")
    until(lambda: len(processes(log)) == 2)
    (os.killpg if to_all else os.kill)(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1  # that of the driver
    until(lambda: not any(map(alive, processes(log))))


@posix
def test_no_worker_outlives_the_run(given: dict[str, Any], log: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        run_jobs(counted, KEYS, given | {"hang": KEYS[3:]}, engine=2, progress=stop)
    until(lambda: not any(map(alive, processes(log))))


@posix
def test_ctrl_c_while_workers_start_leaves_none(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    submit = ProcessPoolExecutor.submit

    def interrupted(self: ProcessPoolExecutor, *job: Any) -> None:
        submit(self, *job)
        started.extend(self._processes)
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(counted, KEYS, given | {"hang": KEYS}, engine=3)
    assert len(started) == 2
    until(lambda: not any(map(alive, started)))


@pytest.mark.parametrize("engine", ["serial", "1"])
def test_more_cpus_than_there_are_is_an_error_before_the_start(
    engine: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"asks for 100000 CPUs, this machine has \d+"):
        run_jobs(counted, KEYS, given, engine=engine, cpus=100_000)
    assert ran(tmp_path / "log") == {}


def test_two_jobs_of_one_key_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="same key"):
        run_jobs(counted, ["a", "a"], given)


def test_no_jobs_give_no_packets() -> None:
    assert run_jobs(counted, [], engine=4) == {}


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", "ray://", "ray://host", "rays", "Serial", "ray://h:p"])
def test_an_unknown_engine_is_one_clear_line(text: str) -> None:
    with pytest.raises(UserError, match=r"expected serial, a number of local workers .*, ray, or ray://HOST:PORT$"):
        parse_engine(text)


def test_engines_are_named_as_the_command_line_names_them() -> None:
    assert parse_engine("serial").kind == "serial"
    assert parse_engine("12").workers == 12
    assert parse_engine("auto").workers >= 1


@pytest.mark.parametrize("text", ["ray", "ray://head:10001"])
def test_without_ray_its_engine_says_how_to_get_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'layerwright\[cluster\]'"):
        parse_engine(text)
