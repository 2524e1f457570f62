"""A survey block by block beside the survey of the loaded model, and its time and memory against depth.

    python benchmarks/streaming.py [--rounds 3]

The model is a folder, and reading it is part of both. Memory is the peak of a fresh process beyond what its imports
take. The curve leaves out the skip matrix, whose work grows with the square of the depth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import medians, peak_so_far, random_llama, table, tokens

from layerwright import measures as measures
from layerwright.core import engine
from layerwright.core.engine import Request, by_walk, in_memory
from layerwright.core.registry import choose

DEPTHS = (8, 16, 32, 64)
NO_SQUARES = ("skip_effect", "skip_output")


def request(folder: Path, tier: str, skip: tuple[str, ...] = ()) -> Request:
    ids = torch.load(folder / "ids.pt", weights_only=True)
    return Request(folder, {"input_ids": ids}, choose(tier, skip=skip))


def save(place: Path, depth: int) -> Path:
    model = random_llama(depth)
    folder = place / str(depth)
    model.save_pretrained(folder, max_shard_size="50MB")
    torch.save(tokens(model), folder / "ids.pt")
    return folder


def beside_memory(folder: Path, rounds: int) -> None:
    rows = []
    for tier in ("quick", "standard"):
        asked = request(folder, tier)
        found = medians({"walk": lambda r=asked: by_walk(r), "memory": lambda r=asked: in_memory(r)}, rounds)
        rows.append((tier, f"{found['walk'] / found['memory']:.2f}"))
    print(table(rows, ("tier", "block by block / in memory")))


def curve(place: Path, rounds: int) -> None:
    folders = {depth: save(place, depth) for depth in DEPTHS}
    asked = {str(depth): request(folder, "standard", NO_SQUARES) for depth, folder in folders.items()}
    seconds = medians({depth: lambda r=r: by_walk(r) for depth, r in asked.items()}, rounds)
    rows = []
    for depth, folder in folders.items():
        run = subprocess.run([sys.executable, __file__, "--only", folder], capture_output=True, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
        time = f"{seconds[str(depth)] / seconds['8']:.2f} ({depth / 8:.0f})"
        rows.append((str(depth), time, f"{weights:.0f} MB", f"{found['mb']:.0f} MB"))
    print(table(rows, ("blocks", "time / 8 blocks (a perfect line)", "weights", "peak beyond imports")))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    torch.set_num_threads(2)
    if a.only is not None:
        engine._LARGE = 0  # freed memory is returned at every depth, as it is for a model that is worth walking
        asked = request(a.only, "standard", NO_SQUARES)
        before = peak_so_far()
        by_walk(asked)
        print(json.dumps({"mb": peak_so_far() - before}))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = save(Path(place), 12)
        beside_memory(folder, a.rounds)
        print()
        curve(Path(place), a.rounds)


if __name__ == "__main__":
    main()
