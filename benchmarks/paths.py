"""Many orders of one model's blocks with shared starts, against one full run for each, and equal to it.

    python benchmarks/paths.py [--rounds 5] [--depth 12] [--sequences 8] [--length 256] [--simulations 200]

Targets: the sweep over all single skips takes at most 0.6 times the loop of full forwards, and the tree search tries at
least 2 times as many paths a second as the same search without the trie. Least work of the sweep: L(L-1)/2 block calls
beside one unchanged pass of L, against L(L-1) beside one; both decode L + 1 times. The search is that of one sample,
without labels to end it early, so that both sides try the same paths.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import torch
from common import medians, random_llama, table, tokens
from torch import nn

from layerwright.core.paths import Path, Paths
from layerwright.core.stack import Stack
from layerwright.edits.path_tree import Budget, Moves, search_tree


@torch.no_grad()
def full_forwards(model: nn.Module, ids: torch.Tensor, orders: list[Path]) -> torch.Tensor:
    """The obvious loop: put other blocks into the model, run it, and take the loss of each sequence."""
    blocks, found = model.model.layers, []
    labels = ids[:, 1:]
    try:
        for order in orders:
            model.model.layers = nn.ModuleList(blocks[k] for k in order)
            model.config.num_hidden_layers = len(order)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            nats = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            found.append(nats.double().mean(1))
    finally:
        model.model.layers, model.config.num_hidden_layers = blocks, len(blocks)
    return torch.stack(found)


def shared(stack: Stack, ids: torch.Tensor, orders: list[Path]) -> torch.Tensor:
    """The same with shared starts; the unchanged pass is part of the work."""
    with Paths(stack, [{"input_ids": ids}]) as paths:
        return paths.losses(orders)


def search(stack: Stack, ids: torch.Tensor, simulations: int, memory: int = 2**30) -> tuple[int, int]:
    """Paths tried and block calls made in a search on one sample, for the answer that the whole model is surest of."""
    with Paths(stack, [{"input_ids": ids[:1]}], memory=memory) as paths:
        found = search_tree(
            paths.whole, lambda p: paths.answers(p).confidence.item(), Moves.on(stack.depth, 2, 1),
            Budget(simulations, 0), explore=1.8, length_cost=3.0, seed=0,
        )  # fmt: skip
        return len(found.rewards), paths.calls


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--depth", type=int, default=12)
    p.add_argument("--sequences", type=int, default=8)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--simulations", type=int, default=200)
    p.add_argument("--pair-rounds", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model = random_llama(a.depth)
    ids = tokens(model, a.sequences, a.length)
    stack = Stack.find(model, {"input_ids": ids})
    every = range(a.depth)
    whole = [tuple(every)]
    skips = whole + [tuple(k for k in every if k != s) for s in every]
    pairs = whole + [tuple(k for k in every if k not in pair) for pair in combinations(every, 2)]
    gap = (shared(stack, ids, skips) - full_forwards(model, ids, skips)).abs().max()
    print(f"largest difference of a loss to the loop: {gap:.1e} nat/token")
    rows = []
    for name, orders, rounds in (("all single skips", skips, a.rounds), ("all pairs", pairs, a.pair_rounds)):
        times = medians(
            {"loop": lambda o=orders: full_forwards(model, ids, o), "shared": lambda o=orders: shared(stack, ids, o)},
            rounds,
        )
        rows.append((name, str(len(orders)), f"{times['shared'] / times['loop']:.2f}"))
    print(table(rows, ("sweep", "orders", "shared starts / loop of full forwards")))
    times = medians(
        {"trie": lambda: search(stack, ids, a.simulations), "none": lambda: search(stack, ids, a.simulations, 0)},
        a.rounds,
    )
    (tried, calls), (same, without) = search(stack, ids, a.simulations), search(stack, ids, a.simulations, 0)
    assert tried == same
    rows = [(str(tried), f"{without / calls:.2f}", f"{times['none'] / times['trie']:.2f}")]
    print(
        "\n"
        + table(
            rows, ("paths tried by a search", "block calls without the trie / with", "paths a second with / without")
        )
    )


if __name__ == "__main__":
    main()
