"""Two surveys side by side: the same measure of two models, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from layerwright.core.reduce import REPLICATES, Key, Reduced, quantiles

Differences = Mapping[Key, tuple[float, float]]

# Columns of a table that say what was measured, not where.
_STATISTICS = ("value", "low", "high", "std", "p95", "max", "tokens", "nonfinite")


def compare(
    tables: Mapping[str, pd.DataFrame],
    against: Mapping[str, pd.DataFrame],
    differences: Mapping[str, Differences] | None = None,
) -> dict[str, pd.DataFrame]:
    """Every table that both have, with the rows that both have.

    Args:
        tables: of the model in question, by measure.
        against: of the other model, or on the other data.
        differences: intervals of the differences of some measures (`differences`).

    Returns:
        by measure, the index columns and `value`, `against`, `difference` (value − against); where the interval of the
        difference is known `low`, `high` and `apart`, whether it leaves out 0; else, where both have intervals, `apart`
        says whether these do not overlap, which is a strict test of a difference.

    Example:
        >>> a = pd.DataFrame({"block": [0, 1], "value": [1.0, 2.0], "low": [0.9, 1.8], "high": [1.1, 2.2]})
        >>> b = pd.DataFrame({"block": [0, 1], "value": [1.5, 2.1], "low": [1.4, 2.0], "high": [1.6, 2.3]})
        >>> compare({"x": a}, {"x": b})["x"]["apart"].tolist()
        [True, False]
        >>> compare({"x": a}, {"x": b}, {"x": {(0,): (-0.6, -0.4), (1,): (-0.2, -0.05)}})["x"]["apart"].tolist()
        [True, True]
    """
    known = differences or {}
    return {n: _joined(table, against[n], known.get(n, {})) for n, table in tables.items() if n in against}


def differences(
    one: Mapping[str, Reduced], other: Mapping[str, Reduced], seed: int
) -> dict[str, dict[Key, tuple[float, float]]]:
    """The 95 % bootstrap interval of each difference of means that two surveys share.

    Where both have as many sequences they are drawn in pairs, so that what all sequences have in common cancels; else
    each survey draws its own.

    Args:
        one: of the survey in question, by measure.
        other: of the other.
        seed: of the draws.
    """
    return {name: _intervals(found, other[name], seed) for name, found in one.items() if name in other}


def _intervals(one: Reduced, other: Reduced, seed: int) -> dict[Key, tuple[float, float]]:
    place = {key: k for k, key in enumerate(other.keys)}
    shared = [(k, place[key]) for k, key in enumerate(one.keys) if key in place]
    sequences = one.total.shape[1], other.total.shape[1]
    if not shared or min(sequences) < 2:
        return {}
    mine, its = (list(rows) for rows in zip(*shared))
    apart = seed if sequences[0] == sequences[1] else seed + 1
    a, b = one.resampled(seed, REPLICATES)[0][mine], other.resampled(apart, REPLICATES)[0][its]
    low, high = quantiles(a - b)
    return {one.keys[k]: (float(x), float(y)) for k, x, y in zip(mine, low, high)}


def _joined(table: pd.DataFrame, other: pd.DataFrame, known: Differences) -> pd.DataFrame:
    index = [c for c in table.columns if c not in _STATISTICS and c in other.columns]
    # Where an index column is missing on one side, or there is none, rows are taken in order.
    if index:
        both = table.merge(other, on=index, suffixes=("", " against"))
    else:
        both = table.join(other.add_suffix(" against"), how="inner")
    result = both[index].copy()
    result["value"], result["against"] = both["value"], both["value against"]
    result["difference"] = result["value"] - result["against"]
    intervals = [known.get(tuple(row)) for row in both[index].itertuples(index=False, name=None)]
    if known and None not in intervals:
        ends = np.array(intervals, dtype=float).reshape(-1, 2)
        result["low"], result["high"] = ends[:, 0], ends[:, 1]
        result["apart"] = (result["low"] > 0) | (result["high"] < 0)
    elif {"low", "high"} <= set(table) & set(other):
        above, below = both["low"] > both["high against"], both["high"] < both["low against"]
        result["apart"] = above | below
    result.attrs = dict(table.attrs)
    return result


def summary(comparison: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a measure: rows, how many of them lie apart, the mean difference and the largest."""
    rows = []
    for name, frame in comparison.items():
        difference = frame["difference"]
        rows.append(
            {
                "measure": name,
                "rows": len(frame),
                "apart": int(frame["apart"].sum()) if "apart" in frame else None,
                "mean difference": difference.mean(),
                "largest difference": difference.loc[difference.abs().idxmax()] if difference.notna().any() else None,
            }
        )
    return pd.DataFrame(rows)
