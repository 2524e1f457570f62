"""Held-out ridge maps between all pairs of layers of two models, against a fit for every pair; depth of embeddings.

    python benchmarks/linear_maps.py [--rounds 3] [--layers 13] [--samples 2048] [--widths 160 512 1024] [--peer]

Target: all pairs at least 10 times faster than a ridge regression from scratch for each (Gram d² N, Cholesky d³, or by
samples where those are fewer), with the penalty chosen as `linear_maps` chooses it, for equal numbers. Two fairer loops
stand beside it: one that decomposes each pair's inputs once for all penalties, and one with a single penalty on both
sides, where there is nothing to choose. A loop is timed on a few pairs, and multiplied. `--peer` adds scikit-learn.

Embedding depth: time linear in the number of samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import medians, table

from layerwright.maths.maps import held_out_squares
from layerwright.maths.ridge import PENALTIES, Split, centred, split_sequences
from layerwright.maths.statistical_depth import depth_within

PAIRS = 2  # timed of each loop


def tower(layers: int, samples: int, width: int, seed: int) -> list[torch.Tensor]:
    """States of a random residual tower, each the one before and a layer of it, over inputs that both towers share."""
    shared = torch.randn(samples, width, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)

    def turn() -> torch.Tensor:
        return torch.randn(width, width, generator=generator) / width**0.5

    states = [shared @ turn()]
    while len(states) < layers:
        states.append(states[-1] + 0.5 * torch.tanh(states[-1] @ turn()))
    return states


def fit(x: torch.Tensor, y: torch.Tensor, split: Split, penalty: float) -> list[float]:
    """Squared errors on both held-out parts of one ridge regression from scratch."""
    x, y = (centred(z, split.train) for z in (x, y))
    (x, *held), (y, *answers) = split.divide(x), split.divide(y)
    n, width = x.shape
    scale = penalty * float(x.square().sum()) / min(n, width)
    if width <= n:
        root = torch.linalg.cholesky(x.T @ x + scale * torch.eye(width, dtype=x.dtype))
        weights = torch.cholesky_solve(x.T @ y, root)
    else:
        root = torch.linalg.cholesky(x @ x.T + scale * torch.eye(n, dtype=x.dtype))
        weights = x.T @ torch.cholesky_solve(y, root)
    return [float((a - h @ weights).square().sum()) for h, a in zip(held, answers)]


def peer(x: torch.Tensor, y: torch.Tensor, split: Split, penalty: float) -> list[float]:
    """The same by scikit-learn."""
    from sklearn.linear_model import Ridge

    (x, *held), (y, *answers) = (split.divide(z.double()) for z in (x, y))
    scale = penalty * float((x - x.mean(0)).square().sum()) / min(x.shape)
    model = Ridge(scale, solver="cholesky").fit(x.numpy(), y.numpy())
    return [float((a - torch.from_numpy(model.predict(h.numpy()))).square().sum()) for h, a in zip(held, answers)]


def compare(width: int, layers: int, samples: int, rounds: int, by_peer: bool) -> tuple[str, ...]:
    """A row: how much longer the loops take than all pairs together, and how far apart the numbers are."""
    xs, ys = (tower(layers, samples, width, seed) for seed in (0, 1))
    split = split_sequences(torch.arange(samples) // 32)
    chosen = [(xs[layers // 2], ys[k]) for k in range(PAIRS)]

    def loop(one: Callable[..., list[float]], penalties: tuple[float, ...]) -> Callable[[], object]:
        return lambda: [[one(x, y, split, p) for p in penalties] for x, y in chosen]

    single = PENALTIES[4:5]
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: held_out_squares(xs, ys, split),
        "ours, one penalty": lambda: held_out_squares(xs, ys, split, single),
        "fits": loop(fit, PENALTIES),
        "decompositions": lambda: [held_out_squares([x], [y], split) for x, y in chosen],
        "fits, one penalty": loop(fit, single),
    }
    if by_peer:
        contenders["scikit-learn"] = loop(peer, PENALTIES)
    times = medians(contenders, rounds)
    whole = layers * layers / PAIRS

    def ratio(one: str, other: str = "ours") -> str:
        return f"{times[one] * whole / times[other]:.1f}×"

    found = held_out_squares(xs[layers // 2 : layers // 2 + 1], ys[:PAIRS], split)[0]
    expected = torch.tensor(contenders["fits"](), dtype=torch.float64)
    apart = float(((found - expected).abs() / expected).max())
    row = (str(width), ratio("fits"), ratio("decompositions"), ratio("fits, one penalty", "ours, one penalty"))
    return (*row, *([ratio("scikit-learn")] if by_peer else []), f"{apart:.0e}")


def depths(samples: int, width: int, rounds: int) -> list[tuple[str, ...]]:
    """Rows: time of the depths of N, 2N and 4N vectors over that of N."""
    sets = {f"{k * samples:,}": torch.randn(k * samples, width) for k in (1, 2, 4)}
    times = medians({name: lambda x=x: depth_within(x) for name, x in sets.items()}, rounds)
    first = next(iter(times.values()))
    return [(name, f"{seconds / first:.2f}") for name, seconds in times.items()]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=13)
    p.add_argument("--samples", type=int, default=2048)
    p.add_argument("--widths", type=int, nargs="+", default=[160, 512, 1024])
    p.add_argument("--peer", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = [compare(width, a.layers, a.samples, a.rounds, a.peer) for width in a.widths]
    beside = ("scikit-learn / ours",) if a.peer else ()
    print(f"{a.layers} × {a.layers} layers, {a.samples} samples, {len(PENALTIES)} penalties\n")
    header = ("width", "fit for each penalty / ours", "decomposition / ours", "one penalty: fit / ours", *beside)
    print(table(rows, (*header, "largest relative difference")))
    print()
    print(table(depths(20_000, 512, max(a.rounds, 9)), ("vectors of width 512", "time of their depths / of the first")))


if __name__ == "__main__":
    main()
