"""Singular values of a weight gradient from token factors, beside the gradient itself; and what a deep survey costs.

    python benchmarks/gradients.py [--rounds 3] [--side 2048] [--survey]

Targets: at least 60 times (256 tokens) and 500 times (64 tokens) as fast as making the gradient and calling `svdvals`,
and 15 times as fast as the best dense way, the eigenvalues of the gradient's Gram. With --survey, the deep tier on 64
sequences of the bundled model beside one forward and backward pass of the same data: at most 3 times.

Least work for T tokens and sides o and i: 2T²(o + i) operations for both Grams and some 10 T³ for the eigenvalues,
against 2Toi for the gradient and some 8/3 · oi · min(o, i) for its singular values.
"""

from __future__ import annotations

import argparse

import torch
from common import medians, table

import layerwright as lw
import layerwright.measures  # registers them
from layerwright.core.data import load_data
from layerwright.core.few import FEW
from layerwright.core.load import load_model
from layerwright.core.registry import MEASURES
from layerwright.maths.gradient import MatrixGradient

# Spectra of one size come one after another in a survey; one alone is mostly the waking of threads.
_IN_A_ROW = 20


def factors(tokens: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a matrix reads and the derivatives by what it gives, with a spread of singular values."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(1, tokens, side, generator=generator) * torch.logspace(0, -2, side)
    return x, torch.randn(1, tokens, side, generator=generator) * torch.logspace(0, -2, tokens)[:, None]


def spectra(tokens: int, side: int, rounds: int) -> None:
    """Time the three ways, and compare what they give."""
    x, delta = factors(tokens, side)

    def dense() -> torch.Tensor:
        return torch.linalg.svdvals(delta[0].T @ x[0])

    def gram() -> torch.Tensor:
        gradient = delta[0].T @ x[0]
        return torch.linalg.eigvalsh(gradient @ gradient.T).clamp_min(0).sqrt().flip(0)

    exact = torch.linalg.svdvals(delta[0].double().T @ x[0].double())[:tokens]
    found = MatrixGradient(x, delta).values()[0]

    def many() -> None:
        for _ in range(_IN_A_ROW):
            MatrixGradient(x, delta).values()

    seconds = medians({"factors": many, "dense": dense, "Gram": gram}, rounds)
    seconds["factors"] /= _IN_A_ROW
    rows = [
        (name, f"{seconds[name] / seconds['factors']:.0f}", f"{float(((v[:tokens] - exact).abs() / exact).max()):.0e}")
        for name, v in (("factors", found), ("dense", dense()), ("Gram", gram()))
    ]
    print(f"\n{side} x {side}, {tokens} tokens")
    print(table(rows, ("way", "time / factors", "largest relative error")))


def survey(rounds: int) -> None:
    """Time the deep tier, and what it stands on."""
    model, tokenizer, _ = load_model("demo")
    data = load_data(None, model, tokenizer, max_tokens=64 * 256)
    ids = torch.cat([batch["input_ids"] for batch in data.batches])
    model.train(False).requires_grad_(True)

    def passes() -> None:
        for batch in ids.split(8):
            model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            model.zero_grad()

    def only(*names: str, sequences: int = FEW) -> object:
        options = {name: {"sequences": sequences} for name in names if "sequences" in MEASURES[name].options}
        return lw.survey(model, {"input_ids": ids}, only=names, options=options)

    deep = [m.name for m in MEASURES.values() if m.tier == "deep"]
    contenders = {"forward and backward": passes, "deep measures": lambda: only(*deep)}
    contenders["with the gradients of all sequences"] = lambda: only(*deep, sequences=len(ids))
    contenders |= {name: lambda name=name: only(name) for name in deep}
    seconds = medians(contenders, rounds)
    base = seconds["forward and backward"]
    print(f"\nthe bundled model, {len(ids)} sequences of {ids.shape[1]} tokens")
    print(table([(n, f"{s / base:.2f}") for n, s in seconds.items()], ("contender", "time / forward and backward")))


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--side", type=int, default=2048)
    p.add_argument("--survey", action="store_true")
    a = p.parse_args()
    for tokens in (64, 256):
        spectra(tokens, a.side, a.rounds)
    if a.survey:
        survey(a.rounds)


if __name__ == "__main__":
    main()
