"""Reshape a folder of weights on disk, beside a copy of its files; and blocks side by side beside blocks in turn.

    python benchmarks/reshape.py [--rounds 3] [--gigabytes 2] [--mergekit PROGRAM]

Time is over that of copying as many bytes as the result has, both flushed to the disk. Memory is of a fresh process:
private (what other processes do not share, as they do the files of libraries), and the peak beyond what imports take.
With --mergekit the passthrough merge of that program, which needs an environment of its own, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import medians, peak_so_far, random_llama, table, tokens

from layerwright.core.edit import apply, apply_stored
from layerwright.core.plan import Plan
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack

PLANS = {"drop 4 blocks": {"drop": "4:8"}, "stack twice": {"stack": 2}}
_PIECE = 2**24


def base(place: Path, gigabytes: float) -> Path:
    """A float32 model of so many gigabytes in shards."""
    depth, width = 16, 1024
    per_block = 4 * (4 * width**2 + 3 * width * (width * 21 // 8))
    depth = max(8, round(gigabytes * 1e9 / per_block))
    folder = place / "base"
    random_llama(depth, width).save_pretrained(folder, max_shard_size="500MB")
    return folder


def copied(source: Path, target: Path, size: int) -> None:
    """As many bytes as the result has, from the same files, flushed."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files = sorted(source.glob("*.safetensors"))
    left, n = size, 0
    while left > 0:
        file = files[n % len(files)]
        amount = min(left, file.stat().st_size)
        with file.open("rb") as a, (target / f"{n}").open("wb") as b:
            done = 0
            while done < amount:
                done += os.copy_file_range(a.fileno(), b.fileno(), min(_PIECE, amount - done))
            os.fsync(b.fileno())
        left, n = left - amount, n + 1


def reshaped(source: Path, target: Path, step: dict[str, object]) -> None:
    """The result of one step, flushed."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    skeleton, _, _ = Skeleton.load(source)
    apply_stored(skeleton, Plan((step,)), target)


def private() -> float:
    """Memory of this process alone in MB, at its peak: what it holds now and what it held more of."""
    status = Path("/proc/self/status").read_text()
    held = {
        line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("Rss", "VmHWM"))
    }
    now = held["RssAnon"] + held["RssFile"] + held["RssShmem"]
    return (held["RssAnon"] + max(0, held["VmHWM"] - now)) / 1024


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def on_disk(place: Path, gigabytes: float, rounds: int, mergekit: str | None) -> None:
    source, target = base(place, gigabytes), place / "new"
    rows = []
    for name, step in PLANS.items():
        reshaped(source, target, step)
        size = size_of(target)
        contenders: dict[str, Callable[[], object]] = {
            "copy": lambda n=size: copied(source, target, n),
            "layerwright": lambda s=step: reshaped(source, target, s),
        }
        if mergekit is not None:
            contenders["mergekit"] = lambda s=step: merged(mergekit, source, target, s)
        found = medians(contenders, rounds)
        run = [sys.executable, __file__, "--only", json.dumps([str(source), str(target), step])]
        peak = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        rows.append((name, f"{size / 1e9:.2f} GB", *(f"{found[c] / found['copy']:.2f}" for c in contenders),
                     f"{peak['private']:.0f} MB", f"{peak['beyond']:.0f} MB"))  # fmt: skip
    print(
        table(rows, ("plan", "result", *(f"{c} / copy" for c in contenders), "private memory", "peak beyond imports"))
    )


def merged(program: str, source: Path, target: Path, step: dict[str, object]) -> None:
    """The same order of blocks as a passthrough merge."""
    depth = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    order = Plan((step,)).order(depth)
    slices = [{"sources": [{"model": str(source), "layer_range": [k, k + 1]}]} for k in order]
    plan = target.with_suffix(".yaml")
    plan.write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "float32"}))
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([program, str(plan), str(target), "--lazy-unpickle"], check=True, capture_output=True)


def side_by_side(rounds: int) -> None:
    """Prefill and decoding of 12 blocks in turn, and of the same blocks in pairs and in fours."""
    model = random_llama()
    inputs = {"input_ids": tokens(model, 2, 64)}
    stack = Stack.find(model, inputs)
    models = {"in turn": model} | {
        f"groups of {g}": apply(stack, Plan(({"parallel": g},)), inputs)[0].eval() for g in (2, 4)
    }
    ids = tokens(model, 1, 256)

    @torch.no_grad()
    def decode(m: torch.nn.Module) -> None:
        m.generate(ids[:, :8], max_new_tokens=24, do_sample=False, pad_token_id=0)

    @torch.no_grad()
    def prefill(m: torch.nn.Module) -> None:
        m(ids)

    found = [medians({n: lambda m=m, run=run: run(m) for n, m in models.items()}, rounds) for run in (prefill, decode)]
    rows = [(name, *(f"{times['in turn'] / times[name]:.2f}" for times in found)) for name in models]
    print(table(rows, ("12 blocks", "prefill of 256, speed", "decoding, speed")))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--gigabytes", type=float, default=2.0)
    p.add_argument("--mergekit", help="the program mergekit-yaml of an environment that has it")
    p.add_argument("--only", help=argparse.SUPPRESS)
    a = p.parse_args()
    torch.set_num_threads(2)
    if a.only is not None:
        source, target, step = json.loads(a.only)
        import transformers.models.llama.modeling_llama  # noqa: F401  what any loading of such a model imports

        before = peak_so_far()
        reshaped(Path(source), Path(target), step)
        print(json.dumps({"private": private(), "beyond": peak_so_far() - before}))
        return
    with tempfile.TemporaryDirectory() as place:
        on_disk(Path(place), a.gigabytes, a.rounds, a.mergekit)
    print()
    side_by_side(a.rounds)


if __name__ == "__main__":
    main()
