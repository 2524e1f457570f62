"""Jobs for the tests of `core/jobs.py`: workers import them by name."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerwright.core.packet import Packet

KEYS = [f"block {k}" for k in range(6)]


def note(file: str, text: str) -> None:
    """Append a line, whole, also where processes write at the same time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def arithmetic(key: str, seed: int, payload: Any) -> Packet:
    """What gives other bits with other threads, dtypes or random states: sums, products, decompositions, gradients."""
    x = torch.randn(200, 300)
    w = torch.randn(300, 200, requires_grad=True)
    torch.nn.functional.layer_norm(x @ w, (200,)).exp().sum().backward()
    a = np.random.default_rng(seed).normal(size=(150, 150)) * payload["scale"]
    tensors = {
        "gradient": w.grad,
        "svd": torch.linalg.svdvals(x),
        "long sum": torch.randn(300_000).exp().sum(),
        "product": torch.tensor(a @ a),
        "eigenvalues": torch.tensor(np.linalg.eigvalsh(a + a.T)),
        "given": torch.tensor(payload["weight"]) * 2,
        "draws": torch.tensor([np.random.rand(), random.random()], dtype=torch.float64),
    }
    return Packet({"key": key, "seed": seed, "threads": torch.get_num_threads()}, tensors)


class Parcel(dict[str, Any]):
    """A payload that tells the file `unpacked` when it arrives in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (dict(self),)


def unpack(content: dict[str, Any]) -> Parcel:
    note(content["unpacked"], f"unpacked {os.getpid()}")
    return Parcel(content)


def counted(key: str, seed: int, payload: Any) -> Packet:
    """Tell the file `log` that it ran; lists of keys say who is to `die`, `die_once`, `raise` or `hang`."""
    note(payload["log"], f"{key} {os.getpid()}")
    mark = Path(f"{payload['log']}.{key}")
    if key in payload.get("die", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    if key in payload.get("die_once", ()) and not mark.exists():
        mark.touch()
        os._exit(0)
    if key in payload.get("raise", ()):
        raise ValueError(f"no number in {key}\nand more of it")
    while key in payload.get("hang", ()):
        time.sleep(0.1)
    time.sleep(payload.get("sleep", 0.0))
    return Packet({"key": key}, {"draw": torch.rand(3)})


def where(key: str, seed: int, payload: Any) -> Packet:
    """Tell the file `log` on which node of a Ray cluster it runs, and give what `counted` gives."""
    import ray

    note(payload["log"], f"{ray.get_runtime_context().get_node_id()} {os.getpid()}")
    time.sleep(payload["sleep"])
    return Packet({"key": key}, {"draw": torch.rand(3)})


def ran(log: Path) -> dict[str, int]:
    """How often each key ran, or each node was used."""
    keys = [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()] if log.exists() else []
    return {key: keys.count(key) for key in keys}


def processes(log: Path) -> list[int]:
    """The processes that ran them."""
    return [int(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines()] if log.exists() else []


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come")
