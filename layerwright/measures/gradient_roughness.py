"""How much gradients differ from one block to the next."""

from __future__ import annotations

import numpy as np

from layerwright.core.registry import measure
from layerwright.core.table import Field

_QUANTITIES = {"nuclear_norm": "nat/token", "nuclear_norm_over_loss": "1", "effective_rank": "1"}
_THIRDS = ("early", "middle", "late")


@measure(unit=_QUANTITIES, range=(0, None), tier="deep", paper="2410.23743", index=("matrix", "stretch"))
def gradient_roughness(gradient_spectrum: Field) -> dict[tuple[str, str, str], float]:
    """How much the gradients of one kind of weight matrix differ between neighbouring blocks.

    With v_l a number of `gradient_spectrum` at block l of a stretch of n blocks,

        MAD = Σ_l |v_{l+1} − v_l| / (n − 1)

    over all blocks and over each third of the tower. Detailed answers give smooth curves, terse ones rough curves. A
    mean over few sequences is rougher than the mean it estimates, so that only numbers of sequences alike compare.

    Args:
        gradient_spectrum: singular values of the gradients, read off.

    Returns:
        by matrix, stretch (`all`, `early`, `middle`, `late`) and quantity; stretches of one block have none.

    Example:
        >>> keys = [(block, "q", "nuclear_norm") for block in range(3)]
        >>> index = ("block", "matrix", "quantity")
        >>> found = gradient_roughness(Field(index, keys, np.array([1.0, 3.0, 2.0]), np.ones(3)))
        >>> float(found["q", "all", "nuclear_norm"])
        1.5

    Reference: arXiv 2410.23743.
    """
    matrices = dict.fromkeys(key[1] for key in gradient_spectrum.keys)
    found = {}
    for matrix in matrices:
        for quantity in _QUANTITIES:
            curve = gradient_spectrum.array(matrix=matrix, quantity=quantity)
            curve = curve[np.isfinite(curve)]
            stretches = {"all": curve} | dict(zip(_THIRDS, np.array_split(curve, 3)))
            for stretch, values in stretches.items():
                if len(values) > 1:
                    found[str(matrix), stretch, quantity] = float(np.abs(np.diff(values)).mean())
    return found
