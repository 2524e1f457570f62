"""NNGP and tangent kernel of rows of numbers, beside neural-tangents.

    python benchmarks/wide_kernels.py --peer PYTHON [--rows 2000] [--rounds 3]

The peer runs in a Python of its own (jax 0.4.24, neural-tangents 0.6.5), compiled, in both types; its faster one
counts. Ours gives float32. Least work: half of X Xᵀ, N² d operations, and one pass that writes 2 N² numbers. Targets:
20 times as fast where inputs share a norm, 5 times where they do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import medians, table

from layerwright.theories import Act, Dense, tower

TASKS = (("relu", 0.0, 10), ("relu", 0.1, 10), ("relu", 0.1, 100), ("erf", 0.1, 10), ("gelu", 0.1, 10))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", metavar="PYTHON", required=True)
    p.add_argument("--rows", type=int, default=2000)
    p.add_argument("--columns", type=int, default=512)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    x = torch.randn(a.rows, a.columns, generator=torch.Generator().manual_seed(0))
    data = {"differ": x, "equal": x / x.norm(dim=1, keepdim=True) * a.columns**0.5}
    script = Path(__file__).with_name("wide_kernels_peer.py")
    lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([a.peer, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer,
    ):
        for norms, rows in data.items():
            np.save(Path(folder) / f"{norms}.npy", rows.numpy())
            for act, bias, depth in TASKS:
                made = tower([*[Dense(2.0, bias), Act(act)] * depth, Dense()])
                contenders: dict[str, Any] = {"ours": partial(made.kernel, rows, dtype=torch.float32)}
                for dtype in ("float32", "float64") if depth == 10 else ():
                    task = {"act": act, "bias": bias, "depth": depth, "dtype": dtype}
                    contenders[dtype] = partial(ask, peer, task | {"rows": f"{folder}/{norms}.npy"})
                seconds = medians(contenders, a.rounds)
                # So few rows go through all layers; all of them the way that is timed.
                exact, found = made.kernel(rows[:500].double()).ntk, made.kernel(rows, dtype=torch.float32).ntk
                off = float((found[:500, :500] - exact).abs().max() / exact.abs().max())
                ours, *theirs = seconds.values()
                ratio = f"{min(theirs) / ours:.1f}" if theirs else ""
                lines.append((norms, act, f"{bias:g}", str(depth), f"{ours:.3f}", ratio, f"{off:.0e}"))
        assert peer.stdin is not None
        peer.stdin.close()
    print(table(lines, ("norms", "activation", "C_b", "depth", "ours (s)", "peer / ours", "float32 against float64")))


def ask(peer: subprocess.Popen[str], task: dict[str, Any]) -> float:
    """Have the peer do a task; its own clock is within that of the round."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(json.dumps(task) + "\n")
    peer.stdin.flush()
    return float(json.loads(peer.stdout.readline()))


if __name__ == "__main__":
    main()
