"""Results: pandas frames in long form that carry unit, definition, paper and spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from layerwright.core.reduce import Key, Reduced, quantiles

REPLICATES_OF_DERIVED = 200


def table(
    index: Iterable[str], keys: list[Key], columns: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> pd.DataFrame:
    """A frame with the index columns of the keys, then the numbers; `meta` becomes its `attrs`."""
    names = list(index)
    frame = pd.DataFrame([list(key) for key in keys], columns=names)
    for name, values in columns.items():
        frame[name] = values
    frame.attrs = dict(meta) | {"index": names}
    return frame


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def estimates(index: Iterable[str], found: Mapping[Key, float | Estimate], meta: Mapping[str, Any]) -> pd.DataFrame:
    """A frame of numbers by key, with intervals where there are any.

    Example:
        >>> estimates(["point"], {(0,): Estimate(0.5, 0.25, 0.75), (1,): 1.0}, {})["low"].tolist()
        [0.25, nan]
    """
    rows = [x if isinstance(x, Estimate) else Estimate(float(x), float("nan"), float("nan")) for x in found.values()]
    columns = {name: np.array([row[k] for row in rows], dtype=float) for k, name in enumerate(Estimate._fields)}
    if np.isnan(columns["low"]).all():
        columns = {"value": columns["value"]}
    return table(index, list(found), columns, meta)


class Field:
    """The numbers of one measure as dense arrays, for the measures that are computed from it.

    Example:
        >>> field = Field(("block",), [(0,), (2,)], np.array([0.5, 0.25]), np.array([1.0, 1.0]))
        >>> field.array()
        array([0.5 ,  nan, 0.25])
    """

    def __init__(self, index: tuple[str, ...], keys: list[Key], mean: np.ndarray, peak: np.ndarray) -> None:
        """Rows named by keys, with their means and maxima over tokens."""
        self.index, self.keys = index, keys
        self._values = {"mean": mean, "max": peak}
        self._places: dict[tuple[Any, ...], tuple[list[int], np.ndarray]] = {}

    def replicate(self, mean: np.ndarray, peak: np.ndarray) -> Field:
        """The same rows with other numbers; where they stand in arrays is worked out once for all replicates."""
        other = Field(self.index, self.keys, mean, peak)
        other._places = self._places
        return other

    def array(self, statistic: str = "mean", **fixed: Any) -> np.ndarray:
        """An array over the index columns that are not fixed, NaN where there is no row.

        Args:
            statistic: `mean` or `max` over tokens.
            fixed: values of index columns, such as `part="block"`.
        """
        chosen, places = self._find(fixed)
        if not chosen:
            return np.full((0,) * places.shape[1], np.nan)
        out = np.full(tuple(places.max(0) + 1), np.nan)
        out[tuple(places.T)] = self._values[statistic][chosen]
        return out

    def has(self, **fixed: Any) -> bool:
        """Whether any row has these values."""
        return bool(self._find(fixed)[0])

    def _find(self, fixed: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
        """The rows with these values, and their places in an array over the other columns."""
        name = tuple(fixed.items())
        if name not in self._places:
            at = [(self.index.index(column), value) for column, value in fixed.items()]
            free = [k for k, column in enumerate(self.index) if column not in fixed]
            chosen = [r for r, key in enumerate(self.keys) if all(key[k] == value for k, value in at)]
            places = np.array([[self.keys[r][k] for k in free] for r in chosen], dtype=int)
            self._places[name] = chosen, places.reshape(len(chosen), len(free))
        return self._places[name]


def field(index: tuple[str, ...], reduced: Reduced) -> Field:
    """The measured numbers."""
    return Field(index, reduced.keys, reduced.mean(), reduced.peak())


def replicate_fields(base: Field, reduced: Reduced, seed: int) -> list[Field]:
    """The same numbers in bootstrap replicates; the same seed draws the same sequences for every measure."""
    if reduced.total.shape[1] < 2:
        return []
    means, peaks = reduced.resampled(seed, REPLICATES_OF_DERIVED)
    return [base.replicate(means[:, k], peaks[:, k]) for k in range(means.shape[1])]


def derived_columns(value: np.ndarray, replicates: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Value and interval of numbers computed from other tables."""
    columns = {"value": value}
    if replicates:
        columns["low"], columns["high"] = quantiles(np.stack(replicates, axis=-1))
    return columns
