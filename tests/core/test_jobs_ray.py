"""Jobs on a Ray cluster of two local nodes: the bits of this process, whatever dies on the way."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_jobs import KEYS, Parcel, alive, arithmetic, counted, processes, ran, until, where

from layerwright.core import cluster as engine
from layerwright.core.errors import UserError
from layerwright.core.jobs import JobsFailed, run_jobs
from layerwright.core.packet import Packet

GIVEN = {"scale": 0.5, "weight": np.arange(200_000.0)}
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'layerwright[cluster]'"),
    # Ray leaves sockets and log files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
_NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}


def content(packets: dict[str, Packet]) -> dict[str, bytes]:
    return {key: packet.to_bytes() for key, packet in packets.items()}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def address() -> str:
    """For clients."""
    return f"ray://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def cluster(address: str) -> Iterator[Any]:
    """A head and a second node, with one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # as Ray would write a token into the home folder
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests'}{os.pathsep}{ROOT}")
        from ray.cluster_utils import Cluster

        head = {**_NODE, "ray_client_server_port": int(address.rsplit(":")[-1]), "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(**_NODE)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        made.shutdown()


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"log": str(tmp_path / "log")}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_two_nodes_give_the_bits_of_this_process_in_any_order(cluster: Any) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    found = run_jobs(arithmetic, shuffled, GIVEN, engine="ray")
    assert list(found) == shuffled
    assert content(found) == content(run_jobs(arithmetic, shuffled, GIVEN))
    assert {packet.data["threads"] for packet in found.values()} == {1}
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_both_nodes_take_part(cluster: Any, given: dict[str, Any], log: Path) -> None:
    run_jobs(where, KEYS, {**given, "sleep": 1.0}, engine="ray")
    assert len(ran(log)) == 2


def test_a_client_of_the_cluster_gets_the_same_bits(cluster: Any, address: str) -> None:
    found = run_jobs(arithmetic, KEYS, GIVEN, engine=address)
    assert content(found) == content(run_jobs(arithmetic, KEYS, GIVEN))


def test_a_client_whose_server_did_not_start_tries_again(
    cluster: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    tries: list[str] = []
    init = ray.init

    def fail_once(address: str, **options: object) -> object:
        tries.append(address)
        if len(tries) == 1:
            raise ConnectionAbortedError("Initialization failure from server")
        return init(address, **options)

    monkeypatch.setattr(ray, "init", fail_once)
    assert list(run_jobs(counted, KEYS, {"log": os.devnull}, engine=address)) == KEYS
    assert len(tries) >= 2


def test_the_payload_is_unpacked_once_by_each_worker(cluster: Any, log: Path, tmp_path: Path) -> None:
    payload = Parcel(log=str(log), unpacked=str(tmp_path / "unpacked"), sleep=0.5)
    run_jobs(counted, KEYS, payload, engine="ray")
    arrived = processes(tmp_path / "unpacked")
    assert len(arrived) == len(set(arrived)) < len(KEYS)
    assert set(arrived) == set(processes(log))


def test_the_callers_state_is_left_alone(cluster: Any) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads()
    run_jobs(counted, KEYS[:2], {"log": os.devnull}, engine="ray")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert (random.getstate(), torch.get_num_threads()) == before[2:]


def test_what_goes_wrong_with_one_job_leaves_the_others(
    cluster: Any, given: dict[str, Any], log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = {"die_once": [KEYS[0]], "die": [KEYS[2]], "raise": [KEYS[4]]}
    done: list[tuple[int, int]] = []
    with pytest.raises(JobsFailed, match=r"2 of 6 jobs failed \('block 2', 'block 4'\)") as caught:
        run_jobs(counted, KEYS, given | wrong, engine="ray", retries=1, store=tmp_path / "store",
                 progress=lambda *step: done.append(step))  # fmt: skip
    assert "its worker was lost (2 times): WorkerCrashedError" in caught.value.failures[KEYS[2]]
    assert caught.value.failures[KEYS[4]].startswith("ValueError: no number in block 4\nTraceback")
    assert ran(log) == {key: 1 + (key in (KEYS[0], KEYS[2])) for key in KEYS}
    assert done == [(k, 6) for k in range(7)]
    assert capfd.readouterr().out == ""
    resumed = run_jobs(counted, KEYS, given, engine="ray", store=tmp_path / "store")
    assert content(resumed) == content(run_jobs(counted, KEYS, {"log": os.devnull}))


def test_more_jobs_than_are_handed_over_at_a_time(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_AHEAD", 3)
    keys = [f"sample {k}" for k in range(20)]
    found = run_jobs(counted, keys, {"log": os.devnull}, engine="ray")
    assert content(found) == content(run_jobs(counted, keys, {"log": os.devnull}))


def test_a_node_that_is_killed_loses_nothing(cluster: Any, given: dict[str, Any], log: Path) -> None:
    keys = [f"sample {k}" for k in range(10)]
    third = cluster.add_node(**_NODE)
    cluster.wait_for_nodes()

    def kill() -> None:
        until(lambda: third.node_id in ran(log))
        cluster.remove_node(third, allow_graceful=False)

    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill)
        found = run_jobs(where, keys, {**given, "sleep": 1.0}, engine="ray")
        killed.result()
    assert content(found) == content(run_jobs(counted, keys, {"log": os.devnull}))
    assert sum(ran(log).values()) > len(keys)


def test_more_cpus_than_the_largest_node_has_is_an_error_before_the_start(
    cluster: Any, given: dict[str, Any], log: Path
) -> None:
    with pytest.raises(UserError, match="asks for 2 CPUs, the largest machine of the Ray cluster has 1"):
        run_jobs(counted, KEYS, given, engine="ray", cpus=2)
    assert ran(log) == {}


def test_losing_the_only_node_that_is_large_enough_is_an_error_and_no_hang(cluster: Any, given: dict[str, Any]) -> None:
    large = cluster.add_node(**_NODE | {"num_cpus": 2})
    cluster.wait_for_nodes()

    def kill(done: int, total: int) -> None:
        if done == 1:
            cluster.remove_node(large, allow_graceful=False)

    with pytest.raises(UserError, match="asks for 2 CPUs"):
        run_jobs(counted, KEYS, {**given, "sleep": 0.5}, engine="ray", cpus=2, progress=kill)


def test_other_versions_on_a_machine_are_named(
    cluster: Any, given: dict[str, Any], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "versions", lambda: "layerwright 0.0.0")
    with pytest.raises(JobsFailed, match=r"a machine has layerwright .* jobs has layerwright 0\.0\.0; install"):
        run_jobs(counted, KEYS, given, engine="ray")
    assert ran(log) == {}


def test_a_connection_of_the_caller_is_used_and_kept(cluster: Any, given: dict[str, Any]) -> None:
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert list(run_jobs(counted, KEYS, given, engine="ray")) == KEYS
        assert ray.is_initialized()
        with pytest.raises(UserError, match="connected to Ray already"):
            run_jobs(counted, KEYS, given, engine="ray://127.0.0.1:9")
    finally:
        ray.shutdown()


def test_ctrl_c_ends_the_jobs_on_the_cluster(cluster: Any, given: dict[str, Any], log: Path) -> None:
    code = "from sample_jobs import *; from layerwright.core.jobs import run_jobs\n"
    call = f"run_jobs(counted, KEYS, {given | {'hang': KEYS}!r}, engine='ray')"
    driver = subprocess.Popen([sys.executable, "-c", code + call], text=True, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    until(lambda: len(processes(log)) == 2)
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == -signal.SIGINT, errors
    until(lambda: not any(map(alive, processes(log))))


def test_no_cluster_at_the_address_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(*args: object, **options: object) -> None:
        raise ConnectionError("ray client connection timeout\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        UserError,
        match=r"^cannot connect to the Ray cluster ray://127.0.0.1:9: ray client .* timeout; expected",
    ):
        run_jobs(counted, KEYS, {"log": os.devnull}, engine="ray://127.0.0.1:9")


def test_where_no_cluster_runs_one_is_started_and_ended(
    cluster: Any, given: dict[str, Any], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked: list[str] = []
    init = ray.init

    def find_none(address: str, **options: object) -> object:
        asked.append(address)
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance.")
        return init(address, **options)

    monkeypatch.setattr(ray, "init", find_none)
    found = run_jobs(counted, KEYS, given, engine="ray")
    assert asked == ["auto", "local"]
    assert content(found) == content(run_jobs(counted, KEYS, {"log": os.devnull}))
    assert not ray.is_initialized()
    until(lambda: not any(map(alive, processes(log))))


def test_a_cluster_that_refuses_is_not_replaced_by_one_of_our_own(
    given: dict[str, Any], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(address: str, **options: object) -> None:
        assert address == "auto"
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.9:6379") from RuntimeError("token")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=r"the Ray cluster of this machine: Failed to connect .*ray stop"):
        run_jobs(counted, KEYS, given, engine="ray")
    assert ran(log) == {}
