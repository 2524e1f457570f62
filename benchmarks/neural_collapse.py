"""Class moments and pair statistics at vocabulary size, against the one-hot form, and equal to it.

    python benchmarks/neural_collapse.py [--rounds 5] [--classes 20000] [--width 512]

Target: at least 100 times faster than one-hot labels, in memory that does not grow with classes × samples. One thread.
The one-hot form is that of the published library (`neural-collapse`, from git only): a matrix of samples × classes
times the features for the means, in a second pass times their squared deviations for the variances, and in a third the
scatter. Pairs: the published kernels over tiles of differences, classes × classes × width, at a twentieth of the
classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

import torch
from common import medians, peak_memory, report_peak, table
from torch import Tensor

from layerwright.maths.class_moments import Classes, ClassMoments
from layerwright.maths.collapse import between, collapse, pairs

BATCH, TILE = 2048, 64


def batches(classes: int, width: int, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random features of rare classes, one after another, and of frequent ones."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, samples, BATCH):
        frequent = (torch.rand(BATCH // 2, generator=generator) ** 4 * classes).long()
        rare = (torch.arange(BATCH // 2) + start // 2) % classes
        yield torch.randn(BATCH, width, generator=generator), torch.cat([frequent, rare])


def one_hot(data: list[tuple[Tensor, Tensor]], classes: int, covariance: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Means, variances and the scatter, a pass for each."""
    names, width = torch.arange(classes), data[0][0].shape[1]
    counts, totals = torch.zeros(classes), torch.zeros(classes, width)
    for x, labels in data:
        chosen = labels[:, None] == names
        counts += chosen.sum(0)
        totals += chosen.mT.to(x) @ x
    means = totals / counts.clamp_min(1)[:, None]
    squares, scatter = torch.zeros(classes), torch.zeros(width, width)
    for x, labels in data:
        chosen = labels[:, None] == names
        squares += (chosen.mT.to(x) @ (x - means[labels]) ** 2).sum(-1)
    if covariance:
        for x, labels in data:
            (labels[:, None] == names).sum(0)  # each pass counts again
            scatter += (x - means[labels]).mT @ (x - means[labels])
    return means, squares / counts.clamp_min(1), scatter / counts.sum() if covariance else None


def moments(data: Iterable[tuple[Tensor, Tensor]], classes: int, width: int, covariance: bool) -> Classes:
    found = ClassMoments(classes, width, covariance=covariance)
    for x, labels in data:
        found.add(x, labels)
    return found.result()


def pairs_by_differences(means: Tensor, variances: Tensor) -> tuple[float, float]:
    """CDNV and the variance of the log kernel, each by a matrix of classes × classes."""
    unit = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    grids = torch.empty(2, len(means), len(means))
    for a in range(0, len(means), TILE):
        for b in range(0, len(means), TILE):
            i, j = slice(a, a + TILE), slice(b, b + TILE)
            square = (means[i, None] - means[j]).square().sum(-1)
            grids[0, i, j] = (variances[i, None] + variances[j]) / 2 / square
            grids[1, i, j] = -(unit[i, None] - unit[j]).norm(dim=-1).log()
    upper = torch.ones(len(means), len(means), dtype=torch.bool).triu(1)
    return float(grids[0][upper].mean()), float(grids[1][upper].var(correction=0))


def difference(data: list[tuple[Tensor, Tensor]], classes: int) -> float:
    """The largest relative one between both forms."""
    ours, (means, variances, scatter) = moments(data, classes, data[0][0].shape[1], True), one_hot(data, classes, True)
    assert scatter is not None
    assert ours.covariance is not None
    found = (ours.means, ours.variances, ours.covariance)
    theirs = (means[ours.labels], variances[ours.labels], scatter)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, theirs))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--classes", type=int, default=20_000)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--only", help="run one contender and print its peak memory")
    a = p.parse_args()
    torch.set_num_threads(1)
    data = list(batches(a.classes, a.width, 2 * BATCH))

    def everything() -> object:
        """NC1 and NC2 of all classes."""
        classes = moments(batches(a.classes, a.width, 4 * a.classes), a.classes, a.width, True)
        assert len(classes.counts) == a.classes
        return collapse(classes, between(classes.means))

    timed = {
        "one-hot": lambda: one_hot(data, a.classes, False),
        "class moments": lambda: moments(data, a.classes, a.width, False),
        "one-hot with scatter": lambda: one_hot(data, a.classes, True),
        "class moments with scatter": lambda: moments(data, a.classes, a.width, True),
    }
    contenders = {"nothing": lambda: None, **timed, f"all numbers of {a.classes} classes": everything}
    if a.only:
        contenders[a.only]()
        report_peak()
        return
    times = medians(timed, a.rounds)
    peaks = {name: peak_memory(__file__, name) for name in contenders}
    rows = []
    for name in contenders:
        beside = "one-hot with scatter" if "scatter" in name else "one-hot"
        speed = f"{times[beside] / times[name]:.1f}" if name in timed else ""
        rows.append((name, speed, f"{peaks[name] - peaks['nothing']:.0f} MB"))
    print(table(rows, ("contender", "speed / one-hot", "peak beyond data and imports")))
    print(f"\nlargest relative difference of means, variances and scatter: {difference(data, a.classes):.1e}\n")

    count = a.classes // 20
    generator = torch.Generator().manual_seed(1)
    means, variances = torch.randn(count, a.width, generator=generator), torch.rand(count, generator=generator)
    doubled = means.double(), variances.double()
    found, theirs = pairs(*doubled, between(doubled[0])), pairs_by_differences(means, variances)
    times = medians(
        {
            "differences": lambda: pairs_by_differences(means, variances),
            "tiles of products": lambda: pairs(*doubled, between(doubled[0])),
        },
        a.rounds,
    )
    rows = [(name, f"{times['differences'] / seconds:.1f}") for name, seconds in times.items()]
    print(table(rows, (f"pairs of {count} classes", "speed / differences")))
    worst = max(abs(x / y - 1) for x, y in zip((found.cdnv, found.uniformity), theirs))
    print(f"\nlargest relative difference of CDNV and uniformity: {worst:.1e}")


if __name__ == "__main__":
    main()
