"""Empirical tangent kernels beside Jacobians of torch.func and beside neural-tangents; a transformer in bounded memory.

    python benchmarks/tangent_kernels.py [--peer PYTHON] [--rounds 5] [--cores 2] [--transformer]

The full kernel of a ReLU network of three hidden layers, 64 inputs of 256 numbers and 10 outputs, in float32. The peer
runs in a Python of its own (`--peer`: jax 0.4.24 and neural-tangents 0.6.5), compiled, with its structured derivatives,
its products with vectors and its Jacobians. Contenders take turns, each as often in a row as its time allows, and both
processes are kept to the same cores: told to use one thread, the peer still takes two thirds of a second core.

Least work: a way back for each input and output, 2 N O w² L steps, and a product of what comes back for each layer,
N² O² w L / 2, against N² O² P for Jacobians of P weights. Targets: 60 times as fast as Jacobians, and no slower than
structured derivatives.

With --transformer a model of 12 blocks, its head tied to its embedding, on 64 sequences of 64 tokens, each task in a
fresh process: seconds of processors, and what the peak of memory grew by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import peak_so_far, table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import layerwright as lw

INPUTS, WIDTH, OUTPUTS, DEPTH = 64, 256, 10, 3
# A contender is called so often in a row that a turn takes about this long.
_TURN = 0.3
TASKS = {
    "projection, 1 GB": {"outputs": "projection", "projections": 4},
    "projection, 256 MB": {"outputs": "projection", "projections": 4, "memory": 2**28},
    "trace of the last token's first 10 logits": {"outputs": "trace", "read": lambda out: out.logits[:, -1, :10]},
}


def network() -> nn.Sequential:
    """The network."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, OUTPUTS))


def by_jacobians(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As torch's own tutorial on tangent kernels has it."""
    values = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(p: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (row[None],))[0]

    jacobians = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(values, x)
    parts = (j.flatten(2) for j in jacobians.values())
    return sum(torch.einsum("iox,jpx->ijop", j, j) for j in parts)


def timed(run: Callable[[], object], times: int) -> float:
    """Seconds of each of some calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


class Peer:
    """The other process."""

    def __init__(self, python: str, folder: Path, model: nn.Module, x: torch.Tensor) -> None:
        """Start it, and hand it the weights."""
        arrays = {name.replace(".", "_"): p.detach().numpy() for name, p in model.named_parameters()}
        np.savez(folder / "network.npz", x=x.numpy(), **arrays)
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("tangent_peer.py")), str(folder)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        self.folder = folder

    def run(self, way: int, times: int) -> float:
        """Seconds of each of some calls of one of its ways; the kernel is in a file then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"way": way, "times": times}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": "the process ended"}
        if "error" in found:
            raise SystemExit(f"way {way} of neural-tangents: {found['error']}")
        return found["seconds"]

    def kernel(self) -> torch.Tensor:
        """Its last one."""
        return torch.from_numpy(np.load(self.folder / "kernel.npy"))


def networks(peer_python: str | None, rounds: int) -> None:
    """The table of the network."""
    model, x = network(), torch.randn(INPUTS, WIDTH, generator=torch.Generator().manual_seed(1))
    exact = by_jacobians(model.double(), x.double())
    model.float()

    def far(kernel: torch.Tensor) -> str:
        return f"{float((kernel - exact).abs().max() / exact.abs().max()):.0e}"

    errors = {"ours": far(lw.tangent_kernel(model, x).values), "torch.func": far(by_jacobians(model, x))}
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[int], float]] = {
            "ours": lambda times: timed(lambda: lw.tangent_kernel(model, x), times),
            "torch.func": lambda times: timed(lambda: by_jacobians(model, x), times),
        }
        if peer_python:
            peer = Peer(peer_python, Path(folder), model, x)
            for way, name in ((3, "structured derivatives"), (2, "products with vectors"), (1, "Jacobians")):
                name = f"neural-tangents, {name}"
                contenders[name] = lambda times, way=way: peer.run(way, times)
                peer.run(way, 1)
                errors[name] = far(peer.kernel())
        often = {name: max(1, int(_TURN / run(1))) for name, run in contenders.items()}
        seen: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                seen[name].append(run(often[name]))
    seconds = {name: statistics.median(values) for name, values in seen.items()}
    rows = [(n, f"{1e3 * s:.1f}", f"{s / seconds['ours']:.2f}", errors[n]) for n, s in seconds.items()]
    print(table(rows, ("contender", "ms", "time / ours", "error beside float64")))


def transformer(task: str) -> None:
    """One task, in this process."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=500, n_embd=128, n_layer=12, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    model, ids = GPT2LMHeadModel(config), torch.randint(0, 500, (64, 64))
    lw.tangent_kernel(model, {"input_ids": ids[:1, :4]}, outputs="projection", projections=2)
    before, wall, cpu = peak_so_far(), time.perf_counter(), time.process_time()
    lw.tangent_kernel(model, {"input_ids": ids}, **TASKS[task])
    seconds = [time.perf_counter() - wall, time.process_time() - cpu]
    print(json.dumps({"seconds": seconds, "megabytes": peak_so_far() - before}))


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", metavar="PYTHON")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--cores", type=int, default=2)
    p.add_argument("--transformer", action="store_true")
    p.add_argument("--only", choices=TASKS, help=argparse.SUPPRESS)
    a = p.parse_args()
    # What is started from here is kept to them too.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.cores])
    torch.set_num_threads(a.cores)
    if a.only:
        return transformer(a.only)
    if not a.transformer:
        return networks(a.peer, a.rounds)
    rows = []
    for task in TASKS:
        command = [sys.executable, __file__, "--only", task, "--cores", str(a.cores)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        rows.append((task, *(f"{s:.1f}" for s in found["seconds"]), f"{found['megabytes']:.0f}"))
    print(table(rows, ("kernel of 64 sequences", "seconds", "of processors", "MB more than before")))


if __name__ == "__main__":
    main()
