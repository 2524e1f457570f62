"""How many paths lead through a residual tower, and how they make its output grow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory

_MOST_BLOCKS = 1000  # paths through half of more are beyond what a float holds
# Name of a branch's scale, and its power of 1/L.
_SCALES = {"unscaled": 0.0, "inverse_sqrt": 0.5, "inverse": 1.0}
_NAMES = {"unscaled": "1", "inverse_sqrt": "1/√L", "inverse": "1/L"}
_POINTS = 60


@theory(paper="2510.03470")
def residual_paths(*, depth: int = 24, gain: float = 1.0, branches: str = "independent", orders: int = 8) -> Prediction:
    """How many paths lead through a residual tower, and how large what they carry is, for three scales of its branches.

    A tower h ← h + s f_l(h) of L blocks is a sum over paths, C(L, k) of them through k branches. With branches that
    make of a vector one c times as long, order k and the whole are, in units of the input's energy ‖h_0‖²,

        independent branches:   C(L, k) (s c)^{2k},   all orders (1 + s²c²)^L   → e^{c²} for s = 1/√L, 1 for 1/L
        aligned ones, lengths:  C(L, k) (s c)^k,      all orders (1 + s c)^L    → e^c for s = 1/L

    and explode with L for larger s. The shares of the orders are binomial: on average by what they
    carry, paths go through L x / (1 + x) branches, x = s²c² (or s c).

    Assumes:
        branches that are linear, or that answer to each path as if it were alone; all of one gain, whatever the depth,
        and without a norm at their beginning, which would take the growth out of them again. Independent: what two
        paths carry is uncorrelated, as with random signs or weights of zero mean; aligned: all of it points one way.

    Args:
        depth: L, blocks, 1 to 1000.
        gain: c, length of a branch's output over that of its input, above 0.
        branches: `independent` or `aligned`.
        orders: rows of the table, from order 0 on, before that of all orders.

    Returns:
        by order: number of paths, and their energy (where aligned, their length) for branches times 1, 1/√L and 1/L;
        the last row is the whole. The picture is each order's share.

    Raises:
        UserError: an option cannot be used.

    Example:
        >>> found = residual_paths(depth=4, gain=1.0).table
        >>> found["paths"].tolist(), found["inverse_sqrt"].round(4).tolist()
        ([1.0, 4.0, 6.0, 4.0, 1.0, 16.0], [1.0, 1.0, 0.375, 0.0625, 0.0039, 2.4414])

    Reference: arXiv 2510.03470; `residual_expansion` measures the orders of a model.
    """
    _check(depth, gain, branches, orders)
    power = 2 if branches == "independent" else 1
    weights = {name: (gain * depth**-p) ** power for name, p in _SCALES.items()}
    every = np.arange(depth + 1)
    paths = np.array([float(math.comb(depth, k)) for k in every])
    with np.errstate(over="ignore"):  # what explodes beyond a float is infinite
        orders_of = {name: paths * np.power(x, every) for name, x in weights.items()}
        totals = {name: np.power(1 + x, float(depth)) for name, x in weights.items()}
    table = pd.DataFrame({"order": every.astype(str), "paths": paths} | orders_of)[:orders]
    table.loc[len(table)] = {"order": "all", "paths": paths.sum()} | totals
    units = {"paths": "path"} | dict.fromkeys(weights, "1")
    shares = {name: np.exp(np.log(paths) + every * np.log(x) - depth * np.log1p(x)) for name, x in weights.items()}
    return Prediction(table, units, _notes(weights, depth, gain, power), _picture(shares))


def _check(depth: int, gain: float, branches: str, orders: int) -> None:
    if not (isinstance(depth, int) and 1 <= depth <= _MOST_BLOCKS and isinstance(orders, int) and orders >= 1):
        raise UserError(
            f"got depth={depth}, orders={orders}; expected whole numbers from 1 on, and at most {_MOST_BLOCKS} blocks"
        )
    if not 0 < gain < math.inf:
        raise UserError(f"got gain={gain}; expected a number above 0")
    if branches not in ("independent", "aligned"):
        raise UserError(f"got branches={branches}; expected independent or aligned")


def _notes(weights: dict[str, float], depth: int, gain: float, power: int) -> list[str]:
    typical = ", ".join(f"{depth * x / (1 + x):.3g} at {_NAMES[name]}" for name, x in weights.items())
    scale, limit = ("1/√L", "e^{c²}") if power == 2 else ("1/L", "e^c")
    return [
        f"paths go through this many of {depth} branches, on average by what they carry: {typical}",
        f"branches times {scale} approach {limit} = {math.exp(gain**power):.4g} with depth",
    ]


def _picture(shares: Mapping[str, np.ndarray]) -> Picture:
    step = -(-len(shares["unscaled"]) // _POINTS)
    series = {f"s = {_NAMES[name]}": [*enumerate(line.tolist())][::step] for name, line in shares.items()}
    return Picture(series, across="branches on the path (branch)", up="share of all orders (1)")
