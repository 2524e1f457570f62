"""Displacements between two positions of images: all of them, and samples that stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Displacement(NamedTuple):
    """From the position in the first image to that in the second.

    Attributes:
        down: rows.
        across: columns; None for all of them at once.
        mirrored: whether −Δ is another displacement, which this one stands for as well.
    """

    down: int
    across: int | None
    mirrored: bool

    @property
    def holds_zero(self) -> bool:
        """Whether a position and itself are there."""
        return self.down == 0 and not self.across

    @property
    def mirror(self) -> Displacement:
        """−Δ."""
        return Displacement(-self.down, None if self.across is None else -self.across, self.mirrored)


def bands(height: int, width: int, circular: bool) -> list[Displacement]:
    """One of each two mirrored bands, which hold every displacement across.

    Example:
        >>> [d.down for d in bands(3, 3, circular=False)], [d.down for d in bands(3, 3, circular=True)]
        ([0, 1, 2], [0, 1])
    """
    if circular:
        return [Displacement(d, None, 0 < 2 * d < height) for d in range(height // 2 + 1)]
    return [Displacement(d, None, d > 0) for d in range(height)]


def singles(height: int, width: int, circular: bool) -> list[Displacement]:
    """One of each two mirrored displacements.

    Example:
        >>> [d[:2] for d in singles(2, 2, circular=False)]
        [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
    """
    if circular:
        found = {min((d, a), (-d % height, -a % width)) for d in range(height) for a in range(width)}
        return [Displacement(d, a, (d, a) != (-d % height, -a % width)) for d, a in sorted(found)]
    return [
        Displacement(d, a, (d, a) != (0, 0))
        for d in range(height) for a in range(1 - width if d else 0, width)
    ]  # fmt: skip


class Sample(NamedTuple):
    """Displacements drawn, and what each counts.

    Attributes:
        drawn: each once.
        weights: in the estimate, and in each of the half samples, `[1 + halves, drawn]`.
        share: of all the work.
    """

    drawn: list[Displacement]
    weights: np.ndarray
    share: float


def stratified(height: int, width: int, circular: bool, share: float, halves: int, seed: int) -> Sample:
    """A sample in cells of neighbours of about equal overlap, two drawn from each with probability ~ overlap.

    The overlap of a displacement is how many positions have a partner, and its work. The displacement 0 is always
    there. A half sample takes one of the two of every cell, at random: the spread of the halves around the whole
    estimate is its standard error (half samples of survey statistics).

    Args:
        height: rows of positions.
        width: columns.
        circular: whether positions go around the border.
        share: of the work, from above 0 to 1.
        halves: how many half samples.
        seed: of the draw.

    Example:
        >>> found = stratified(8, 8, False, share=0.2, halves=4, seed=0)
        >>> found.weights.shape == (5, len(found.drawn)), found.drawn[0][:2], 0.1 < found.share < 0.3
        (True, (0, 0), True)
    """
    rng, every = np.random.default_rng(seed), singles(height, width, circular)
    overlaps = np.array([1 if circular else (height - d.down) * (width - abs(d.across or 0)) for d in every])
    work = overlaps * np.array([1 + d.mirrored for d in every])
    weights = np.zeros((1 + halves, len(every)))
    weights[:, 0] = 1.0
    if len(every) > 1:
        of_a_draw = (work[1:] * overlaps[1:]).sum() / overlaps[1:].sum()
        cells = max(1, round((share * work.sum() - work[0]) / (2 * of_a_draw)))
        for cell in _cells(every, overlaps, cells):
            mass = overlaps[cell].sum()
            pair = rng.choice(cell, 2, p=overlaps[cell] / mass)
            np.add.at(weights[0], pair, 0.5 * mass / overlaps[pair])
            chosen = pair[rng.integers(0, 2, halves)]
            np.add.at(weights, (np.arange(1, 1 + halves), chosen), mass / overlaps[chosen])
    used = np.flatnonzero(weights[0])
    return Sample([every[k] for k in used], weights[:, used], float(work[used].sum() / work.sum()))


def _cells(every: Sequence[Displacement], overlaps: np.ndarray, cells: int) -> list[np.ndarray]:
    """All but the first, in about so many parts of about one mass: bands of rows, each cut across."""
    down, across = (np.array([d[axis] for d in every[1:]]) for axis in (0, 1))
    order = np.lexsort((across, down)) + 1
    rows = max(1, round(np.sqrt(cells / 2)))
    found = []
    for band in _cut(order, overlaps, rows):
        band = band[np.lexsort((down[band - 1], across[band - 1]))]
        found += _cut(band, overlaps, max(1, round(cells * overlaps[band].sum() / overlaps[order].sum())))
    return found


def _cut(order: np.ndarray, overlaps: np.ndarray, parts: int) -> list[np.ndarray]:
    """In order, parts of about one mass."""
    mass = overlaps[order]
    place = (np.cumsum(mass) - mass / 2) / mass.sum() * parts
    return [part for k in range(parts) if len(part := order[place.astype(int) == k])]
