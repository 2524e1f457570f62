"""How the stream would grow if its blocks' updates were independent of one another."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import BY_NAME, measure


@measure(unit="1", range=(0, None), tier=BY_NAME, paper="2510.03470", index=("point", "numbers"))
def independent_branches(last_token: Tensor) -> dict[tuple[int, str], Tensor]:
    """Size of the stream, beside what it would be if no block's update were correlated with what was there.

    At each sequence's last token, with √(mean_i h_l,i²) the size of state l, mean over sequences of

        measured: √K_l,   predicted: √( K_0 + Σ_{k<l} mean_i (h_{k+1} − h_k)_i² ),   K_l = mean_i h_l,i²

    Independent branches add their squares, as at initialisation. Where the stream is larger than predicted, blocks
    write along what is there already; where it is smaller, they take from it.

    Args:
        last_token: all states of the stream, `[state, batch, width]`.

    Returns:
        by state: `measured` and `predicted`, each `[batch]`, at least 0.

    Example:
        >>> h = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[2.0, 2.0]]])
        >>> found = independent_branches(h)
        >>> [round(found[2, name].item() ** 2, 4) for name in ("measured", "predicted")]  # and not (1 + 1 + 2) / 2
        [4.0, 2.0]

    Reference: arXiv 2510.03470 for what branches of other scales make of it (`residual_paths`).
    """
    square = last_token.square().mean(-1)
    added = last_token.diff(dim=0).square().mean(-1)
    predicted = torch.cat([square[:1], square[0] + added.cumsum(0)])
    both = {"measured": square.sqrt(), "predicted": predicted.sqrt()}
    return {(state, name): sizes[state] for name, sizes in both.items() for state in range(len(square))}
