"""Quick tier against the same plain forward pass, and against the same measures on TransformerLens' cached run.

    python benchmarks/quick_tier.py [--rounds 7] [--peer]

Targets: at most 1.25 times the wall time and 1.3 times the peak memory of the plain pass. `--peer` needs the `[bench]`
extra. One forward pass of 8 x 256 tokens through 12 blocks of width 512 is about 160 GFLOP; the lens on 256 tokens adds
9 %, the hooks read each state a few times (4 MB each).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable

import torch
from common import medians, peak_memory, random_llama, report_peak, save_with_tokenizer, table, tokens

from layerwright import measures as measures
from layerwright.core.record import record
from layerwright.core.registry import choose
from layerwright.core.stack import Stack


def plain() -> Callable[[], object]:
    model = random_llama()
    ids = tokens(model)

    @torch.no_grad()
    def run() -> object:
        return model(input_ids=ids, use_cache=False)

    return run


def quick() -> Callable[[], object]:
    model = random_llama()
    batch = {"input_ids": tokens(model)}
    stack, chosen = Stack.find(model, batch), choose("quick")
    return lambda: record(stack, [batch], chosen, sequences=8)


def with_tracing() -> Callable[[], object]:
    model = random_llama()
    batch = {"input_ids": tokens(model)}
    return lambda: record(Stack.find(model, batch), [batch], choose("quick"), sequences=8)


def peer() -> Callable[[], object]:
    """The quick tier's measures written on a cached run of TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    model = random_llama()
    ids = tokens(model)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_with_tokenizer(model, folder)
        bridge = TransformerBridge.boot_transformers(folder, tokenizer=tokenizer)
    sample = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))[:256]

    @torch.no_grad()
    def run() -> object:
        logits, cache = bridge.run_with_cache(ids)
        depth, found = bridge.cfg.n_layers, []
        stream = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{k}.hook_resid_post"] for k in range(depth))]
        for k in range(depth):
            before, after = stream[k], stream[k + 1]
            middle = before + cache[f"blocks.{k}.hook_attn_out"]
            parts = [(middle - before, before), (after - middle, middle), (after - before, before)]
            found += [(u.norm(dim=-1) / b.norm(dim=-1)).mean() for u, b in parts]
            found += [torch.cosine_similarity(u, b, dim=-1).mean() for u, b in parts]
            found.append(1 - torch.cosine_similarity(before, after, dim=-1).mean())
        found += [state.std(-1).mean() for state in stream]
        last = torch.nn.functional.normalize(torch.stack(stream)[:, :, -1], dim=-1)
        found.append((torch.einsum("pbd,qbd->pqb", last, last).clamp(-1, 1).arccos() / math.pi).mean(-1))
        final = logits.flatten(0, 1)[sample].log_softmax(-1)
        for state in stream:
            lens = bridge.unembed(bridge.ln_final(state.flatten(0, 1)[sample][None]))[0].log_softmax(-1)
            found.append((lens.exp() * (lens - final)).sum(-1).mean())
            found.append((lens.topk(5).indices[:, :, None] == final.topk(5).indices[:, None]).any(-1).float().mean())
        return found

    return run


CONTENDERS = {
    "plain forward": plain,
    "quick tier": quick,
    "quick tier with tracing": with_tracing,
    "TransformerLens": peer,
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--peer", action="store_true", help="also run TransformerLens")
    p.add_argument("--only", help="run one contender once and print its peak memory")
    a = p.parse_args()
    torch.set_num_threads(2)
    if a.only:
        CONTENDERS[a.only]()()
        return report_peak()
    names = [n for n in CONTENDERS if a.peer or n != "TransformerLens"]
    times = medians({n: CONTENDERS[n]() for n in names}, a.rounds)
    memory = {n: peak_memory(__file__, n) for n in names}
    base_time, base_memory = times["plain forward"], memory["plain forward"]
    rows = [(n, f"{times[n] / base_time:.2f}", f"{memory[n] / base_memory:.2f}", f"{memory[n]:.0f} MB") for n in names]
    print(table(rows, ("contender", "wall time / plain", "peak memory / plain", "peak memory")))


if __name__ == "__main__":
    main()
