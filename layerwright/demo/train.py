"""Train the bundled model: `python -m layerwright.demo.train --out DIR` (two CPU cores, about an hour).

A Llama-style causal LM over byte-level BPE on the source of the Python standard library (`corpus.py` says which files).
Matrices inside the blocks are trained with Muon, everything else with AdamW; the learning rate warms up, holds, and
decays linearly to zero over `--steps`, so that a run does not depend on how busy the machine is. Forward passes run
in bfloat16 where the processor has it. Writes the weights, the tokenizer, `training.json` (settings, loss curve) and
`heldout.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from layerwright.demo import corpus

BOS = "<s>"


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE: every byte is a token, so that no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, each text behind a begin-of-text token."""
    return torch.from_numpy(np.concatenate([np.array([0, *e.ids]) for e in tokenizer.encode_batch(texts)]))


def windows(ids: torch.Tensor, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`rows` random windows of `length` tokens."""
    starts = torch.randint(0, len(ids) - length, (rows,), generator=generator)
    return torch.stack([ids[s : s + length] for s in starts.tolist()])


def loss_of(model: torch.nn.Module, batch: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean next-token loss of a batch of windows, nat per token."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """Mean loss in nat per token over all rows, float32."""
    model.eval()
    total = sum(loss_of(model, part, bf16=False).item() * len(part) for part in rows.split(16))
    model.train()
    return total / len(rows)


def learning_rate(step: int, steps: int) -> float:
    """Warm up over 50 steps, hold until 40 % of the run, then fall linearly to zero."""
    return min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.6)


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(a: argparse.Namespace) -> None:
    """Tokenize, train, evaluate and save."""
    torch.manual_seed(a.seed)
    library, tests, held_out = corpus.split()
    texts = [[t for p in paths if (t := corpus.read(p))] for paths in (library, tests, held_out)]
    tokenizer = train_tokenizer(texts[0], a.vocab)
    ids = [encode(tokenizer, t) for t in texts]
    held_bytes = sum(len(t.encode()) for t in texts[2])
    bytes_per_token = held_bytes / len(ids[2])
    rows = ids[2][: len(ids[2]) // a.length * a.length].view(-1, a.length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    print(f"tokens: library {len(ids[0])}, tests {len(ids[1])}, held out {len(ids[2])}", flush=True)

    config = LlamaConfig(
        vocab_size=a.vocab, hidden_size=a.width, intermediate_size=a.mlp_width, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.heads, max_position_embeddings=1024, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.config.use_cache = False
    step_model: torch.nn.Module = torch.compile(model) if a.compile else model  # type: ignore[assignment]  # it stays a module
    opts = optimizers(model, a.lr)
    generator = torch.Generator().manual_seed(a.seed)
    bf16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and not a.float32
    curve, start = [], time.time()
    for step in range(a.steps):
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = a.lr * learning_rate(step, a.steps)
        library_rows = round(a.batch * a.library_share)
        batch = torch.cat([
            windows(ids[0], library_rows, a.length, generator),
            windows(ids[1], a.batch - library_rows, a.length, generator),
        ])  # fmt: skip
        loss = loss_of(step_model, batch, bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        if step % (a.steps // 30) == 0:
            bpb = evaluate(model, rows[:64]) / math.log(2) / bytes_per_token
            curve.append({"step": step, "seconds": round(time.time() - start, 1), "train_loss": round(loss.item(), 4),
                          "bits_per_byte": round(bpb, 4)})  # fmt: skip
            print(
                json.dumps(curve[-1] | {"tokens_per_s": round((step + 1) * batch.numel() / (time.time() - start))}),
                flush=True,
            )
    nat = evaluate(model, rows[:512])
    final = {
        "steps": a.steps,
        "tokens": a.steps * a.batch * a.length,
        "held_out_loss_nat": nat,
        "held_out_bits_per_byte": nat / math.log(2) / bytes_per_token,
        "bytes_per_token": bytes_per_token,
    }
    print(json.dumps(final), flush=True)
    save(a, model, tokenizer, held_out, {"settings": vars(a) | {"out": None}, "curve": curve, "final": final})


def save(a: argparse.Namespace, model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: list[Path], log: dict) -> None:
    """Write the bfloat16 weights, the tokenizer, the log and the list of held-out files."""
    out = Path(a.out)
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)
    fast.model_max_length = a.length
    fast.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(log, indent=1))
    (out / "heldout.json").write_text(json.dumps([p.as_posix() for p in held_out], indent=1))


def main() -> None:
    """Read the options and train."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="folder for the weights, tokenizer and log")
    p.add_argument("--steps", type=int, default=3600)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--width", type=int, default=160)
    p.add_argument("--mlp-width", type=int, default=432)
    p.add_argument("--heads", type=int, default=5)
    p.add_argument("--vocab", type=int, default=2048)
    p.add_argument("--length", type=int, default=256, help="tokens in a training window")
    p.add_argument("--batch", type=int, default=16, help="windows in a step")
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument(
        "--library-share", type=float, default=0.6, help="share of windows from the library, the rest from its tests"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--compile", action="store_true", help="torch.compile the step (needs a C++ compiler)")
    p.add_argument("--float32", action="store_true", help="never use bfloat16")
    train(p.parse_args())


if __name__ == "__main__":
    main()
