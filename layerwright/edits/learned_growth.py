"""Grow a model in depth by mixtures of its blocks that are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.mixing import ALL, Mixing, stacking
from layerwright.core.plan import Plan
from layerwright.core.planner import Keep, planner
from layerwright.core.steps.choice import number, one_of, whole
from layerwright.core.table import table

# Numbers that a plan can hold: written out they are a line of up to 25 bytes each, in a file of at most a megabyte.
_MOST_NUMBERS = 40_000


@planner(paper="2405.15319", tier="deep")
def learned_growth(
    mixing: Mixing, seed: int, keep: Keep, *, times: int = 2, steps: int = 100, rate: float = 0.003, per: str = "weight"
) -> Plan:
    """Grow a model in depth by mixtures of its blocks that are learned on the data, the model itself staying as it is.

    Each weight of block j of the grown tower is a mixture of that weight in all L blocks,

        W'_j = Σ_l D[j, l]·W_l

    The matrices D, one for each kind of weight, start as stacking (D[j, j mod L] = 1, else 0) and go down the loss of
    the grown model by Adam, the weights W fixed. Half of the documents is learned on, the loss is measured on the other
    half. Where it is no lower there than that of stacking, the plan is to stack.

    Args:
        mixing: the grown model on the data.
        seed: of the order of the batches.
        keep: gets the table of losses along the way, as `learned_growth`.
        times: how many times as deep.
        steps: of Adam, each on one batch.
        rate: its first learning rate, which falls to zero in a straight line.
        per: one matrix for each kind of `weight`, or one for all weights of a `block`.

    Returns:
        a plan with one `grow` step that holds the matrices to 6 digits. The table holds by step the loss on its batch
        in nat/token.

    Raises:
        UserError: fewer than two documents, no labels in the data, blocks that cannot be mixed, or matrices of more
            numbers than a plan can hold.

    Example:
        >>> from layerwright.core.paths import Paths
        >>> from layerwright.core.stack import Stack
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(2, n, bias=False) for n in (2, 2, 3)))
        >>> for layer in model:  # the more of all blocks, the surer the answers
        ...     layer.weight.data = torch.eye(*layer.weight.shape)
        >>> inputs = {"input": torch.eye(2).repeat(2, 1), "labels": torch.tensor([0, 1, 0, 1])}
        >>> with Paths(Stack.find(model, inputs), [inputs]) as paths, Mixing(paths) as mixing:
        ...     plan = learned_growth(mixing, 0, lambda name, frame: None, steps=1, rate=0.5)
        >>> plan.steps[0]["grow"]["mix"]  # the first step of Adam is as long as its rate
        {'weight': [[1.5, 0.5], [0.5, 1.5], [1.5, 0.5], [0.5, 1.5]]}

    Reference: arXiv 2405.15319, where it is one of four operators of growth; it comes from arXiv 2303.00980.
    """
    factor, count = whole(times, "times", 2), whole(steps, "steps")
    kinds = mixing.kinds if one_of(per, "per", ("weight", "block")) == "weight" else (ALL,)
    numbers = len(kinds) * factor * mixing.depth**2
    if numbers > _MOST_NUMBERS:
        raise UserError(
            f"{len(kinds)} matrices of {factor * mixing.depth} × {mixing.depth} are {numbers:,} numbers, more than a "
            f"plan can hold ({_MOST_NUMBERS:,}); give per=block for one matrix"
        )
    first = number(rate, "rate")
    start = stacking(mixing.depth, factor)
    mix = {kind: start.clone().requires_grad_() for kind in kinds}
    held = {"unchanged": mixing.held.loss(mixing.held.whole), "stacked": mixing.losses({ALL: start})}
    losses = []
    for loss in _descent(mixing, mix, seed, count, first):
        losses.append(loss)
        mixing.progress("learning", len(losses), count)
    keep("learned_growth", _table(losses))
    rounded = {kind: [[_six_digits(x) for x in row] for row in matrix.tolist()] for kind, matrix in mix.items()}
    held["learned"] = mixing.losses({kind: torch.tensor(rows, dtype=torch.float64) for kind, rows in rounded.items()})
    found = {name: mixing.held.mean(loss).item() for name, loss in held.items()}
    grow: dict[str, Any] = {"depth": factor}
    if found["learned"] < found["stacked"]:
        grow |= {"by": "learn", "mix": rounded}
    why = _why(mixing, found, count, len(kinds), int((held["learned"] < held["stacked"]).sum()))
    return Plan(({"grow": grow},), why=why)


def _descent(mixing: Mixing, mix: Mapping[str, Tensor], seed: int, steps: int, rate: float) -> Iterator[float]:
    """Steps of Adam on the matrices, in place; each gives the loss before it."""
    optimizer = torch.optim.Adam(mix.values(), lr=rate)
    generator, batches = torch.Generator().manual_seed(seed), len(mixing.learn.runs)
    order: list[int] = []
    for n in range(steps):
        order = order or torch.randperm(batches, generator=generator).tolist()
        loss = mixing.loss(mix, order.pop())
        optimizer.param_groups[0]["lr"] = rate * (1 - n / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def _six_digits(x: float) -> float:
    return float(f"{x:.6g}")


def _table(losses: list[float]) -> pd.DataFrame:
    meta = {
        "name": "learned_growth",
        "title": "Loss of the grown model while its mixtures are learned",
        "unit": "nat/token",
        "definition": "Mean negative log-likelihood of the labels in the batch of each step, before the step.",
    }
    return table(["step"], [(n,) for n in range(len(losses))], {"value": np.array(losses)}, meta)


def _why(mixing: Mixing, found: Mapping[str, float], steps: int, matrices: int, better: int) -> str:
    learned = (
        f"{steps} steps on {mixing.learn.sequences} documents learned {matrices} "
        f"{'matrices that mix' if matrices > 1 else 'matrix that mixes'} the {mixing.depth} blocks"
    )
    losses = (
        f"on {mixing.held.sequences} held-out documents the loss is {found['learned']:.4f} nat/token, that of stacking "
        f"{found['stacked']:.4f} (learned is lower in {better} documents), that of the model before growth "
        f"{found['unchanged']:.4f}"
    )
    if not found["learned"] < found["stacked"]:
        return f"Learning gained nothing over stacking, which is what the plan does: {learned}; {losses}."
    return f"{learned}; {losses}."
