"""Cost against tokens and against blocks: both should be straight lines (without the skip matrix).

    python benchmarks/scaling.py [--rounds 3]

Prints the ratio to the smallest case; a perfect line gives the numbers in brackets.
"""

from __future__ import annotations

import argparse

import torch
from common import medians, random_llama, table, tokens

from layerwright import measures as measures
from layerwright.core.record import record
from layerwright.core.registry import choose
from layerwright.core.stack import Stack

DEPTHS = (6, 12, 24, 48)
SEQUENCES = (4, 8, 16, 32)


def survey(depth: int, sequences: int, tier: str):
    model = random_llama(depth, width=128, vocabulary=512)
    ids = tokens(model, sequences)
    batches = [{"input_ids": part} for part in ids.split(8)]
    stack = Stack.find(model, batches[0])
    chosen = choose(tier, skip=() if tier == "quick" else ("skip_effect", "skip_output"))
    return lambda: record(stack, batches, chosen, sequences=sequences)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(2)
    for tier in ("quick", "standard"):
        depths = medians({str(d): survey(d, 8, tier) for d in DEPTHS}, a.rounds)
        counts = medians({str(n): survey(12, n, tier) for n in SEQUENCES}, a.rounds)
        rows = [(f"{d} blocks", f"{depths[str(d)] / depths['6']:.2f} ({d / 6:.0f})") for d in DEPTHS]
        rows += [(f"{n * 256} tokens", f"{counts[str(n)] / counts['4']:.2f} ({n / 4:.0f})") for n in SEQUENCES]
        print(f"\n{tier} tier{' without skips' if tier == 'standard' else ''}\n")
        print(table(rows, ("case", "time / smallest (a perfect line)")))


if __name__ == "__main__":
    main()
