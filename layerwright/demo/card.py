"""Write the model card of the bundled model: `python -m layerwright.demo.card`.

Everything in it is measured on the committed weights: held-out bits per byte, and the loss after removing each single
block (really removed: the block is skipped at every token of the text). The loss curve is drawn from `training.json`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from layerwright.demo import corpus
from layerwright.demo.train import encode, loss_of

FOLDER = Path(__file__).parent / "model"
ROWS = 256


def held_out_rows(length: int) -> tuple[torch.Tensor, float]:
    """Windows of the held-out files, and how many bytes a token stands for there."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    paths = [Path(p) for p in json.loads((FOLDER / "heldout.json").read_text())]
    texts = [t for p in paths if (t := corpus.read(p))]
    ids = encode(tokenizer.backend_tokenizer, texts)
    rows = ids[: len(ids) // length * length].view(-1, length)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    return rows[order], sum(len(t.encode()) for t in texts) / len(ids)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Nat per token."""
    return sum(loss_of(model, part, bf16=False).item() * len(part) for part in rows.split(16)) / len(rows)


def losses_without_each(model: LlamaForCausalLM, rows: torch.Tensor) -> list[float]:
    """Mean loss with one block taken out, for every block."""
    blocks = list(model.model.layers)
    found = []
    for k in range(len(blocks)):
        model.model.layers = torch.nn.ModuleList(blocks[:k] + blocks[k + 1 :])
        model.config.num_hidden_layers = len(blocks) - 1
        found.append(mean_loss(model, rows))
    model.model.layers = torch.nn.ModuleList(blocks)
    model.config.num_hidden_layers = len(blocks)
    return found


def curve_svg(curve: list[dict[str, float]]) -> str:
    """Held-out bits per byte against steps, as a small picture."""
    width, height, left, bottom = 520, 220, 44, 30
    steps, values = [c["step"] for c in curve], [c["bits_per_byte"] for c in curve]
    top = math.ceil(max(values))

    def x(step: float) -> float:
        return left + (width - left - 10) * step / max(steps)

    def y(value: float) -> float:
        return 10 + (height - bottom - 10) * (1 - (value - 0.8) / (top - 0.8))

    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, values, strict=True))
    ticks = "".join(
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>'
        f'<line x1="{left}" x2="{width - 10}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
        for v in range(1, top + 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{ticks}'
        f'<polyline points="{points}" fill="none" stroke="#35608d" stroke-width="2"/>'
        f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">training step '
        f"(held-out bits per byte, {values[0]:.2f} to {values[-1]:.2f})</text></svg>\n"
    )


def card(log: dict, model: LlamaForCausalLM, bpb: float, loss: float, without: list[float]) -> str:
    """The card's text."""
    settings, final = log["settings"], log["final"]
    rows = "\n".join(f"| {k} | {v:.3f} | {v - loss:+.3f} |" for k, v in enumerate(without))
    return f"""---
license: apache-2.0
language: code
---
# The bundled model

A Llama-style causal language model of the Python standard library's source, made to have something real to survey
offline: {settings["layers"]} blocks of width {settings["width"]} (MLP {settings["mlp_width"]}, {settings["heads"]}
heads), byte-level BPE of {settings["vocab"]} tokens, {model.num_parameters() / 1e6:.2f} M parameters, stored in
bfloat16 and computed in float32. It writes plausible Python and knows nothing else; use it for nothing but trying
tools.

## Training
`python -m layerwright.demo.train --out DIR --compile` on two CPU cores: {final["steps"]} steps of {settings["batch"]} x
{settings["length"]} tokens ({final["tokens"] / 1e6:.1f} M tokens, {settings["library_share"]:.0%} from the library and
the rest from its tests), Muon for the blocks' matrices and AdamW for the rest, seed {settings["seed"]}. Text: the
source of CPython 3.11's standard library, under the PSF licence.

![held-out bits per byte against training steps](curve.svg)

## Held-out text
The files in `heldout.json` were chosen by a hash of their path and left out of training, tokenizer included, with the
test files named after them. On {ROWS} windows of {settings["length"]} tokens from them, measured on the stored weights:
**{bpb:.3f} bits per byte** ({loss:.3f} nat per token, {final["bytes_per_token"]:.2f} bytes per token).

## Loss after removing one block
On the same windows, nat per token:

| block removed | loss | rise |
|---|---|---|
{rows}

One model, one seed: take the pattern, not the sizes, and neither as evidence about large models.
"""


def main() -> None:
    """Measure, then write `README.md` and `curve.svg` beside the weights."""
    log = json.loads((FOLDER / "training.json").read_text())
    model = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    model.config.use_cache = False
    rows, bytes_per_token = held_out_rows(log["settings"]["length"])
    rows = rows[:ROWS]
    loss = mean_loss(model, rows)
    without = losses_without_each(model, rows)
    text = card(log, model, loss / math.log(2) / bytes_per_token, loss, without)
    (FOLDER / "curve.svg").write_text(curve_svg(log["curve"]))
    (FOLDER / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
