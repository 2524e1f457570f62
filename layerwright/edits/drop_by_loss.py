"""Leave out the blocks without which the loss rises least, by running the model without them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.paths import Path, Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import Keep, fewer_than, in_words, planner
from layerwright.core.reduce import Key, quantiles
from layerwright.core.steps.choice import one_of, whole
from layerwright.core.table import table

SEARCHES = ("auto", "greedy", "beam", "exhaustive")
# So many sets are all tried unless a search is named: all pairs of 14 blocks.
_ALL = 100
_REPLICATES = 1000

Set = frozenset[int]


@planner(paper="2505.13898", tier="standard")
def drop_by_loss(paths: Paths, seed: int, keep: Keep, *, blocks: int = 1, search: str = "auto", width: int = 8) -> Plan:
    """Leave out the n blocks without which the loss rises least, measured by running the model without them.

    Over sets S of n blocks,

        argmin_S mean_t [ ln p(label_t) − ln p_{without S}(label_t) ]

    `exhaustive` tries every set. `beam` starts from all single blocks and goes on from the best `width` sets to every
    set with one more; `greedy` is a beam of width 1. `auto` tries every set where there are at most 100. Runs that
    start with the same blocks share that work: single blocks cost L(L−1)/2 block calls, not L(L−1).

    Args:
        paths: the model on the data, with its blocks in any order.
        seed: of the bootstrap.
        keep: gets the table of all sets tried, as `drop_by_loss`.
        blocks: n, how many to leave out.
        search: `auto`, `greedy`, `beam` or `exhaustive`.
        width: how many sets a beam goes on from.

    Returns:
        a plan with one `drop` step. The table holds by set the rise of the loss in nat/token with its 95 % interval
        over sequences.

    Raises:
        UserError: fewer than one block or all of them, an unknown search, no labels in the data, or a model whose own
            loss is no number.

    Example:
        >>> from layerwright.core.stack import Stack
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(2, n, bias=False) for n in (2, 2, 2, 3)))
        >>> for layer, gain in zip(model, (1.0, 3.0, 2.0, 1.0)):  # a gain of 1 can go, as it does nothing
        ...     layer.weight.data = gain * torch.eye(*layer.weight.shape)
        >>> inputs = {"input": torch.eye(2), "labels": torch.tensor([0, 1])}
        >>> with Paths(Stack.find(model, inputs), [inputs]) as paths:
        ...     drop_by_loss(paths, 0, lambda name, frame: None, blocks=2).steps
        ({'drop': [0, 2]},)

    Reference: arXiv 2505.13898 for the skips of single blocks.
    """
    count = fewer_than(blocks, paths.depth)
    one_of(search, "search", SEARCHES)
    if not (loss := paths.mean(paths.losses([paths.whole], "unchanged model")[0])).isfinite():
        raise UserError(f"the unchanged model's own loss is {loss.item()}; look for NaN with `lw survey`")
    breadth = 1 if search == "greedy" else whole(width, "width")
    if search == "exhaustive" or (search == "auto" and comb(paths.depth, count) <= _ALL):
        tried = [frozenset(s) for s in combinations(range(paths.depth), count)]
        paths.losses([_without(s, paths.depth) for s in tried], "sets of blocks")
    else:
        tried = _beam(paths, count, breadth)
    frame = _table(paths, tried, seed)
    keep("drop_by_loss", frame)
    return Plan(({"drop": [int(b) for b in frame["blocks"][0].split()]},), why=_why(frame, count, paths))


def _without(left_out: Iterable[int], depth: int) -> Path:
    out = set(left_out)
    return tuple(k for k in range(depth) if k not in out)


def _beam(paths: Paths, count: int, width: int) -> list[Set]:
    """The sets of the last round."""
    best: list[Set] = [frozenset()]
    tried: list[Set] = []
    for size in range(1, count + 1):
        # In a fixed order, so that sets that cost the same are ranked the same in every run.
        tried = sorted({s | {k} for s in best for k in range(paths.depth) if k not in s}, key=sorted)
        rises = paths.mean(paths.losses([_without(s, paths.depth) for s in tried], f"{size} of {count} blocks"))
        best = [tried[k] for k in torch.argsort(rises, stable=True)[:width].tolist()]
    return tried


def _table(paths: Paths, tried: list[Set], seed: int) -> pd.DataFrame:
    """All sets, best first, with the rise of the loss and its bootstrap interval over sequences."""
    losses = paths.losses([_without(s, paths.depth) for s in tried])
    base = paths.loss(paths.whole)
    rise = paths.mean(losses) - paths.mean(base)
    order = torch.argsort(rise, stable=True).tolist()
    low, high = _interval((losses - base)[order], paths.weights, seed)
    keys: list[Key] = [(" ".join(map(str, sorted(tried[k]))),) for k in order]
    columns = {"loss": paths.mean(losses)[order].numpy(), "value": rise[order].numpy(), "low": low, "high": high}
    meta = {
        "name": "drop_by_loss",
        "title": "Rise of the loss without a set of blocks",
        "unit": "nat/token",
        "definition": "Mean over labelled tokens of ln p(label) minus the same without the blocks.",
    }
    return table(["blocks"], keys, columns, meta)


def _interval(rises: Tensor, weights: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of each row's mean over sequences drawn with replacement; NaN where there is none."""
    n = len(weights)
    if n < 2:
        return (np.full(len(rises), np.nan),) * 2
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _REPLICATES).T * weights.numpy()[:, None]
    known = rises.isfinite().all(1).numpy()[:, None]
    means = np.where(known, rises.numpy(), 0.0) @ drawn / np.maximum(drawn.sum(0), 1)
    return quantiles(np.where(known, means, np.nan))


def _why(frame: pd.DataFrame, count: int, paths: Paths) -> str:
    best = frame.iloc[0]
    blocks = in_words(map(int, best["blocks"].split()))
    interval = "" if np.isnan(best["low"]) else f" (95 % interval {best['low']:+.4f} to {best['high']:+.4f})"
    everything = comb(paths.depth, count)
    sets = f"all {everything} sets" if len(frame) == everything else f"{len(frame)} of {everything} sets tried last"
    why = (
        f"Without {blocks} the loss changes by {best['value']:+.4f} nat/token{interval}, "
        f"the least of {sets} of {count}, "
        f"on {paths.sequences} sequences"
    )
    if len(frame) > 1:
        other = frame.iloc[1]
        why += f"; next is {in_words(map(int, other['blocks'].split()))} with {other['value']:+.4f}"
    return why + "."
