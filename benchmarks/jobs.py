"""A skip sweep of 16 prompts in two local workers beside the same jobs one after another.

    python benchmarks/jobs.py [--rounds 3] [--workers 2] [--length 256]

Starting the workers, their imports and their copies of the model are part of it. The machine must be idle.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import medians, random_llama, table, tokens

from layerwright import measures as measures
from layerwright.core.engine import Request, by_jobs
from layerwright.core.registry import choose

PROMPTS = 16


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        model = random_llama()
        model.save_pretrained(place)
        data = {"input_ids": tokens(model, PROMPTS, a.length)}
        chosen = choose("standard", only=("skip_effect", "skip_output"))

        def sweep(engine: str) -> dict[str, object]:
            return by_jobs({"model": Request(Path(place), data, chosen, jobs=engine)})

        found = medians({name: lambda name=name: sweep(name) for name in ("serial", str(a.workers))}, a.rounds)
        one, many = (sweep(name)["model"].recording.tables for name in ("serial", str(a.workers)))
    rows = [("serial", "1.00"), (f"{a.workers} workers", f"{found['serial'] / found[str(a.workers)]:.2f}")]
    print(table(rows, ("jobs", "speed / serial")))
    print(f"\nthe same bits: {all(one[name].equals(many[name]) for name in one)}")


if __name__ == "__main__":
    main()
