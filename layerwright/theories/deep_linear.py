"""How fast a deep linear network learns each mode of its task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.deep_linear import learning_time, mode_strength

_POINTS = 60


@theory(paper="1312.6120")
def deep_linear(*, depth: int = 3, modes: Sequence[float] = (3.0, 2.0, 1.0), start: float = 0.01) -> Prediction:
    """Learning curve of every mode of a deep linear network, exactly.

    With s a singular value of the correlation of whitened inputs with targets, a the strength of its mode in the
    product of D matrices, and τ = 1 / learning rate,

        τ da/dt = D a^{2 − 2/D} (s − a)

    Modes are learned one after another, the strongest first; from a small start the deeper a network, the longer it
    waits and the more sudden it learns. From orthogonal matrices, where `start` is 1, the time hardly depends on depth
    once the learning rate is divided by it: `half_time_times_depth`.

    Assumes:
        gradient flow on the squared error, whitened inputs, and balanced matrices aligned with the task, as from a
        small or an orthogonal start; linear activations.

    Args:
        depth: D, how many matrices.
        modes: the values of s, above 0.
        start: a at the beginning, above 0, the same for all modes.

    Returns:
        by mode: `half_time` to halfway between start and s and `most_time` to nine tenths of the way, in units of
        τ (steps times learning rate); the picture shows a / s over time.

    Raises:
        UserError: depth below 1, or a strength that is not above 0.

    Example:
        >>> found = deep_linear(depth=2, modes=[2.0, 1.0]).table
        >>> found["half_time"].round(3).tolist()
        [1.326, 2.308]

    Reference: arXiv 1312.6120.
    """
    strengths = _checked(depth, modes, start)
    rows = []
    for s in strengths:
        half, most = (start + share * (s - start) for share in (0.5, 0.9))
        times = [learning_time(s, depth, start, end) if s != start else 0.0 for end in (half, most)]
        rows.append((s, *times, times[0] * depth))
    table = pd.DataFrame(rows, columns=["mode", "half_time", "most_time", "half_time_times_depth"])
    end = 1.3 * max(float(table["most_time"].max()), 1e-3)
    grid = np.linspace(0.0, end, _POINTS)
    curves = {f"s = {s:g}": list(zip(grid.tolist(), mode_strength(s, depth, start, grid) / s)) for s in strengths[:5]}
    return Prediction(
        table, {"mode": "1", "half_time": "τ", "most_time": "τ", "half_time_times_depth": "τ"},
        picture=Picture(curves, across="steps × learning rate (τ)", up="strength / s (1)"),
    )  # fmt: skip


def _checked(depth: int, modes: Sequence[float], start: float) -> list[float]:
    if not isinstance(depth, int) or depth < 1:
        raise UserError(f"got depth={depth}; expected a whole number from 1 on")
    given = [modes] if isinstance(modes, (int, float)) else list(modes)
    if not given or not all(0 < x < math.inf for x in given):
        raise UserError(f"got modes={given}; expected numbers above 0, as in --set modes=[3,2,1]")
    if not 0 < start < math.inf:
        raise UserError(f"got start={start}; expected a number above 0")
    return [float(x) for x in given]
