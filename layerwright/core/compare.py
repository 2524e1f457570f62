"""Two surveys side by side: the same measure of two models, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

# Columns of a table that say what was measured, not where.
_STATISTICS = ("value", "low", "high", "std", "p95", "max", "tokens", "nonfinite")


def compare(tables: Mapping[str, pd.DataFrame], against: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every table that both have, with the rows that both have.

    Args:
        tables: of the model in question, by measure.
        against: of the other model.

    Returns:
        by measure, the index columns and `value`, `against`, `difference` (value − against) and, where both have
        intervals, `apart`: whether these do not overlap, which is a strict test of a difference.

    Example:
        >>> a = pd.DataFrame({"block": [0, 1], "value": [1.0, 2.0], "low": [0.9, 1.8], "high": [1.1, 2.2]})
        >>> b = pd.DataFrame({"block": [0, 1], "value": [1.5, 2.1], "low": [1.4, 2.0], "high": [1.6, 2.3]})
        >>> compare({"x": a}, {"x": b})["x"]["apart"].tolist()
        [True, False]
    """
    return {name: _joined(table, against[name]) for name, table in tables.items() if name in against}


def _joined(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    index = [c for c in table.columns if c not in _STATISTICS and c in other.columns]
    # Where an index column is missing on one side, or there is none, rows are taken in order.
    if index:
        both = table.merge(other, on=index, suffixes=("", " against"))
    else:
        both = table.join(other.add_suffix(" against"), how="inner")
    result = both[index].copy()
    result["value"], result["against"] = both["value"], both["value against"]
    result["difference"] = result["value"] - result["against"]
    if {"low", "high"} <= set(table) & set(other):
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
