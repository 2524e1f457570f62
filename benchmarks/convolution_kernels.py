"""Kernels of convolutional towers with global pooling beside neural-tangents, exact and from a sample.

    python benchmarks/convolution_kernels.py [--peer PYTHON] [--rounds 5] [--threads 2] [--digits]

The peer runs in a Python of its own (`--peer`: jax 0.4.24 and neural-tangents 0.6.5), in float64, its faster type here.
Three layers of 3×3 filters and relu, the mean over positions, a dense layer; both kernels. Contenders take turns.

Least work for N images of P pixels: of each of the P² N²/2 pairs of positions and each layer 8 additions (two kernels,
filters cut in two), one square root and one arc tangent. Targets: 8 times as fast as the peer, exact; with a tenth of
the work within 5 % standard error; 500 images of 8×8 pixels (`--digits`) inside ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import table
from sklearn.datasets import load_digits, load_sample_image

from layerwright.maths.activation import activation
from layerwright.maths.convolution_kernel import pooled, sampled
from layerwright.maths.convolution_layers import Convolution, Layer, Nonlinearity
from layerwright.maths.kernel import Kernels, dense
from layerwright.theories import Act, Conv, Dense, Pool, tower

Seconds = tuple[float, float]


def layers(depth: int) -> list[Layer]:
    """Up to the readout."""
    return [layer for _ in range(depth) for layer in (Convolution(3, 2.0), Nonlinearity(activation("relu")))]


def whole(x: torch.Tensor, depth: int) -> Kernels:
    """All of the tower."""
    return dense()(pooled(layers(depth), x))


def photographs(n: int, size: int) -> np.ndarray:
    """Pieces of a photograph, `[N, 3, size, size]`, their mean taken off."""
    whole = load_sample_image("china.jpg").astype(float) / 255
    rng = np.random.default_rng(0)
    corners = [(rng.integers(whole.shape[0] - size), rng.integers(whole.shape[1] - size)) for _ in range(n)]
    x = np.stack([whole[a : a + size, b : b + size] for a, b in corners]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x - x.mean())


def timed(run: Callable[[], object]) -> Seconds:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(contenders: dict[str, Callable[[], Seconds]], rounds: int) -> dict[str, Seconds]:
    """Medians of what each took, taken in turn after a first round."""
    seen: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for k in range(rounds + 1):
        for name, run in contenders.items():
            seconds = run()
            if k:
                seen[name].append(seconds)
    return {name: tuple(map(statistics.median, zip(*values))) for name, values in seen.items()}  # type: ignore[misc]


class Peer:
    """The other process."""

    def __init__(self, python: str, folder: Path) -> None:
        """Start it."""
        script = Path(__file__).with_name("convolution_peer.py")
        self.folder = folder
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, x: np.ndarray, depth: int) -> Seconds:
        """What both kernels took it; they are in a file then."""
        np.save(self.folder / "images.npy", x)
        task = {
            "images": str(self.folder / "images.npy"), "results": str(self.folder / "found.npz"), "depth": depth,
            "dtype": "float64",
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        wall, cpu = json.loads(self.process.stdout.readline())["seconds"]
        return wall, cpu

    def far(self, found: Kernels) -> float:
        """The largest difference of its last result over the largest number."""
        theirs = np.load(self.folder / "found.npz")
        return max(
            float(np.abs(ours.numpy() - theirs[name]).max() / theirs[name].max())
            for name, ours in (("nngp", found.nngp), ("ntk", found.ntk))
        )


def least(pairs: float, dtype: torch.dtype) -> float:
    """Processor seconds of the least work for so many pairs of positions and layers, from the operations alone."""
    threads, (x, y) = torch.get_num_threads(), torch.rand(2, 2**14, dtype=dtype)
    torch.set_num_threads(1)

    def best(operation: Callable[[], object]) -> float:
        return min(timed(operation)[0] for _ in range(200)) / x.numel()

    add, root, arc = (best(f) for f in (lambda: y.add_(x, alpha=1e-9), x.sqrt, lambda: torch.atan2(x, y)))
    torch.set_num_threads(threads)
    return pairs * (8 * add + root + arc)


def exact(peer: Peer | None, sizes: list[tuple[int, int]], depth: int, rounds: int) -> None:
    """Both types beside the peer."""
    rows = []
    for size, n in sizes:
        x = photographs(n, size)
        double, single = torch.from_numpy(x), torch.from_numpy(x).float()
        contenders = {
            "float64": lambda x=double: timed(lambda: whole(x, depth)),
            "float32": lambda x=single: timed(lambda: whole(x, depth)),
        }
        if peer is not None:
            contenders["peer"] = lambda x=x: peer.run(x, depth)
        seconds = in_turn(contenders, rounds)
        found = whole(double, depth)
        rough = whole(single, depth)
        error = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in ((rough.nngp, found.nngp), (rough.ntk, found.ntk))
        )
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            wall, cpu = seconds[name]
            work = least(size**4 * n**2 / 2 * depth, dtype)
            beside = (
                [f"{theirs / ours:.1f}" for theirs, ours in zip(seconds["peer"], (wall, cpu))] if peer else ["", ""]
            )
            apart = f"{peer.far(found if name == 'float64' else rough):.0e}" if peer else ""
            rows.append((
                f"{size}×{size}", str(n), name, f"{wall:.2f}", *beside, apart, f"{work / cpu:.2f}",
                f"{error:.0e}" if name == "float32" else "",
            ))  # fmt: skip
    print(table(rows, (
        "images", "N", "type", "seconds", "peer / ours, wall", "peer / ours, processor", "difference to the peer",
        "least work / processor", "error beside float64",
    )))  # fmt: skip


def samples(sizes: list[tuple[int, int]], depth: int, seeds: int) -> None:
    """What a tenth of the work gives, over several draws."""
    rows = []
    for size, n in sizes:
        x = torch.from_numpy(photographs(n, size)).float()
        start = time.process_time()
        every = pooled(layers(depth), x)
        took = time.process_time() - start
        found, spent = [], []
        for seed in range(seeds):
            start = time.process_time()
            found.append(sampled(layers(depth), x, share=0.1, seed=seed))
            spent.append(time.process_time() - start)
        for part in ("nngp", "ntk"):
            exact_one = getattr(every, part)
            off = torch.stack([getattr(e.kernels, part) - exact_one for e in found]).square().mean(0).sqrt()
            said = torch.stack([
                torch.stack([getattr(h, part) - getattr(e.kernels, part) for h in e.halves]).square().mean(0)
                for e in found
            ]).mean(0).sqrt()  # fmt: skip
            rows.append((
                f"{size}×{size}", str(n), part, f"{statistics.mean(e.share for e in found):.3f}",
                f"{statistics.median(spent) / took:.3f}", f"{(off / exact_one.abs()).mean():.1%}",
                f"{(said / exact_one.abs()).mean():.1%}",
            ))  # fmt: skip
    print(table(rows, ("images", "N", "kernel", "share of the work", "of the time", "error", "error it states")))


def digits(depth: int) -> None:
    """All pairs of 500 small images, once."""
    x = torch.from_numpy(load_digits().images[:500] / 16)[:, None]
    words = [word for _ in range(depth) for word in (Conv(3, 2.0), Act("relu"))]
    wall, cpu = timed(lambda: tower([*words, Pool(), Dense()]).kernel(x))
    print(f"500 images of 8×8: {wall:.0f} s, {cpu:.0f} s of processors")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", metavar="PYTHON")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--digits", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.digits:
        return digits(3)
    with tempfile.TemporaryDirectory() as folder:
        exact(Peer(a.peer, Path(folder)) if a.peer else None, [(16, 12), (32, 4)], 3, a.rounds)
    print()
    samples([(16, 16), (32, 6)], 3, a.seeds)


if __name__ == "__main__":
    main()
