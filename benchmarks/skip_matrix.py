"""The complete skip matrix in one walk, against the obvious loop of full forwards, and equal to it.

    python benchmarks/skip_matrix.py [--rounds 3] [--depth 12] [--peer]

Target: at most 0.6 times the loop. Least work: L(L-1)/2 block calls and L heads for each kind of skip, against L·L (or
L(L-1), where the skipped block is not computed) and L heads. `--peer` adds `neuro-scan`'s ablation loop, which gives
one number a block and no matrix.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import contextmanager

import torch
from common import medians, random_llama, save_with_tokenizer, table, tokens, word

from layerwright import measures as measures
from layerwright.core.record import record
from layerwright.core.registry import find
from layerwright.core.stack import Stack


@contextmanager
def bypassed(block, keep):
    """The block passes its input on, except at the tokens to keep; its own computation is still done."""

    def hook(module, args, output):
        state = output if isinstance(output, torch.Tensor) else output[0]
        mixed = torch.where(keep[..., None], state, args[0])
        return mixed if isinstance(output, torch.Tensor) else (mixed, *output[1:])

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def loop(model, ids, splits) -> dict[str, torch.Tensor]:
    """Maximum over tokens of the relative change of every later update, by a full forward for every skipped block."""
    blocks = model.model.layers
    place = torch.arange(ids.shape[1]).expand(ids.shape)
    kinds = {
        "later": (place < 1, place >= 0),
        "future": ((place < 1) | (place >= splits[:, None]), place >= splits[:, None]),
    }
    updates: list[torch.Tensor] = []

    def note(module, args, output):
        updates.append((output if isinstance(output, torch.Tensor) else output[0]) - args[0])

    handles = [b.register_forward_hook(note) for b in blocks]
    log_p = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    labels = ids[:, 1:, None]
    base, found = list(updates), {}
    for kind, (keep, seen) in kinds.items():
        matrix = torch.full((len(blocks), len(blocks)), torch.nan)
        for s, block in enumerate(blocks):
            updates.clear()
            with bypassed(block, keep):
                logits = model(input_ids=ids, use_cache=False).logits
            log_q = logits.log_softmax(-1)
            (log_p.exp() - log_q.exp()).norm(dim=-1).amax()
            (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            (log_p - log_q)[:, :-1].gather(-1, labels).mean()
            for k in range(s + 1, len(blocks)):
                effect = (base[k] - updates[k]).norm(dim=-1) / base[k].norm(dim=-1).clamp_min(1e-6)
                matrix[s, k] = effect[seen].max()
        found[kind] = matrix
    for h in handles:
        h.remove()
    return found


def peer(model, ids):
    """neuro-scan's single-layer ablation: one text at a time, the logits of the last token, no matrix."""
    from neuro_scan.backends.transformers_backend import TransformersBackend

    backend = TransformersBackend()
    with tempfile.TemporaryDirectory() as folder:
        save_with_tokenizer(model, folder)
        backend.load(folder, dtype="float32", device_map="cpu")
    texts = [" ".join(map(word, row)) for row in ids.tolist()]

    def run() -> object:
        skips = [[], *([k] for k in range(len(model.model.layers)))]
        return [backend.forward_with_ablation(text, skip) for text in texts for skip in skips]

    return run


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--depth", type=int, default=12)
    p.add_argument("--peer", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(2)
    model = random_llama(a.depth)
    ids = tokens(model)
    batch = {"input_ids": ids}
    stack = Stack.find(model, batch)
    chosen = [find("skip_effect"), find("skip_output")]

    def ours():
        return record(stack, [batch], chosen, sequences=len(ids)).tables["skip_effect"]

    splits = _splits(stack, batch)
    frame, matrices = ours(), loop(model, ids, splits)
    worst = 0.0
    for kind, matrix in matrices.items():
        rows = frame[frame["quantity"] == kind]
        theirs = matrix.numpy()[rows["source"].to_numpy(), rows["block"].to_numpy()]
        worst = max(worst, float(abs(rows["max"].to_numpy() - theirs).max()))
    contenders = {"loop of full forwards": lambda: loop(model, ids, splits), "one walk": ours}
    if a.peer:
        contenders["neuro-scan ablation"] = peer(model, ids)
    times = medians(contenders, a.rounds)
    base = times["loop of full forwards"]
    print(table([(n, f"{t / base:.2f}") for n, t in times.items()], ("contender", "wall time / loop")))
    print(f"\nlargest difference to the loop over {len(frame)} entries: {worst:.1e}")


def _splits(stack: Stack, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The random tokens that the walk splits at, for the loop to use the same."""
    from layerwright.core.batch import Batch
    from layerwright.core.desk import Desk
    from layerwright.core.quiet import undisturbed
    from layerwright.core.replay import Replay
    from layerwright.core.skips import SkipPass

    with undisturbed(stack.model), torch.no_grad():
        replay, settled = Replay(stack, batch), Batch(batch, 0, 0, 1, 0)
        settled.settle(replay.states[0], replay.states[0])
        split = SkipPass(stack, Desk([], {}), settled, replay, 0).split
    assert split is not None
    return split


if __name__ == "__main__":
    main()
