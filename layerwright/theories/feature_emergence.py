"""From how many samples on hidden units find features of modular addition that generalise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.grokking import (
    CRITICAL_RATIO,
    Addition,
    emerged,
    fourier_purity,
    share_of_features,
    threshold,
)

_COUNTS = 9


@theory(paper="2509.21519")
def feature_emergence(
    *,
    modulus: int = 17,
    samples: Sequence[int] = (),
    units: int = 12,
    seed: int = 0,
) -> Prediction:
    """How many samples of modular addition make hidden units find features, rather than memorise.

    While the last layer follows by itself, each hidden unit climbs an energy of its own weights w,

        E(w) = ½ ‖Ỹᵀ (X w)²‖²,   ‖w‖ = 1

    with X the one-hot pairs of numbers below M and Ỹ their centred one-hot sums modulo M. On all M² pairs each maximum
    is a wave of one frequency in both numbers, of energy M/4, which generalises. On n of them, other maxima memorise a
    few; the waves stay maxima, the paper proves, from n of the order of M ln M on.

    Assumes:
        two layers, squares as activation, the squared error, units that do not yet feel one another; pairs drawn at
        random without replacement. The energy says what is a maximum, not how long a network takes.

    Args:
        modulus: M, from 3 on.
        samples: counts n to look at; left out, from M ln M to all M² pairs.
        units: started at random, and as many from waves, for each count.
        seed: of the pairs and the starts.

    Returns:
        by n: the share of units from random weights that end as waves of one frequency (over half of their square), the
        same for units that began as waves, mean purity, mean energy over that of all pairs' waves, and n / (M ln M).

    Raises:
        UserError: numbers that are not whole, a modulus below 3, or counts that are no number of pairs.

    Example:
        >>> found = feature_emergence(modulus=7, samples=[49], units=4).table
        >>> found[["found", "kept", "energy"]].round(6).values.tolist()
        [[1.0, 1.0, 1.0]]

    Reference: arXiv 2509.21519. That a wave's energy is M/4 is derived here. Measured here: half of the waves stay
    maxima from 4 M ln M at M = 23, 10 at 127, 14 at 503 and 16 at 1009: the order M ln M shows at large M only.
    """
    for name, value, least in (("modulus", modulus, 3), ("units", units, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"got {name}={value}; expected a whole number from {least} on")
    unit = modulus * math.log(modulus)
    order = np.random.default_rng(seed).permutation(modulus**2)
    counts = _counts(samples, modulus, unit)
    ends = cache(lambda n: emerged(Addition(modulus, order[:n]), units, np.random.default_rng([seed, n])))
    rows = []
    for n in counts:
        kept, found = ends(n)
        energy = 4 * Addition(modulus, order[:n]).energy(found)[0].mean() / modulus
        row = n, n / unit, n / modulus**2, share_of_features(found), share_of_features(kept)
        rows.append((*row, fourier_purity(found).mean(), energy))
    columns = ["samples", "over_m_ln_m", "share_of_pairs", "found", "kept", "purity", "energy"]
    table = pd.DataFrame(rows, columns=columns)
    notes = [] if samples else _thresholds(ends, modulus, unit)
    critical = CRITICAL_RATIO * unit
    notes.append(f"the paper's code takes {CRITICAL_RATIO} M ln M to be critical, here {critical:.0f} samples")
    series = {
        name: list(zip(table["over_m_ln_m"], table[key]))
        for name, key in (("from random weights", "found"), ("from waves", "kept"))
    }
    picture = Picture(series, across="samples over M ln M", up="share of units that are waves (1)")
    return Prediction(table, {"samples": "sample", **dict.fromkeys(columns[1:], "1")}, notes, picture)


def _counts(samples: Sequence[int], modulus: int, unit: float) -> list[int]:
    counts: list[int] = [samples] if isinstance(samples, int) else list(samples)
    if not counts:
        return sorted({round(n) for n in np.linspace(min(unit, modulus**2 / 2), modulus**2, _COUNTS)})
    if not all(isinstance(n, int) and 1 <= n <= modulus**2 for n in counts):
        raise UserError(f"got samples={counts}; expected whole numbers from 1 to {modulus**2}, the number of pairs")
    return counts


def _thresholds(ends: Callable[[int], tuple[np.ndarray, np.ndarray]], modulus: int, unit: float) -> list[str]:
    """Where half of the units end as waves, from either start."""
    notes = []
    for k, name in ((1, "from random weights"), (0, "from waves")):
        n = threshold(lambda n, k=k: share_of_features(ends(n)[k]), modulus, modulus**2)  # type: ignore[misc]
        notes.append(f"half of the units {name} end as waves from {n:.0f} samples on, {n / unit:.2f} M ln M")
    return notes
