"""What averages over tokens leave of their differences: the part without the mean, and the largest gain of a map."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 64
_CHANGE = 1e-4
# Numbers of the matrices worked on at once: what stays in the cache is read several times as fast.
_AT_ONCE = 2**19


def high_pass(x: Tensor, tokens: Tensor) -> Tensor:
    """Tokens less their mean; what is none of them is zero.

        HC[X] = (I − 11ᵀ/n) X

    Args:
        x: `[…, T, d]`.
        tokens: which of them count, n of them, `[…, T]`.

    Example:
        >>> high_pass(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([True, True, False])).flatten().tolist()
        [-1.0, 1.0, 0.0]
    """
    if tokens.all():
        return x - x.mean(-2, keepdim=True)
    tokens = tokens.unsqueeze(-1)
    x = torch.where(tokens, x, 0.0)
    mean = x.sum(-2, keepdim=True) / tokens.sum(-2, keepdim=True).clamp_min(1)
    return torch.where(tokens, x - mean, 0.0)


def first_tokens(real: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first n tokens of each sequence that are no padding, and whether it has as many; n = 0 for all of them.

    Args:
        real: which are no padding, `[B, T]`.
        n: how many.

    Returns:
        `[B, T]` and `[B]`.

    Example:
        >>> first_tokens(torch.tensor([[False, True, True]]), 1)
        (tensor([[False,  True, False]]), tensor([True]))
    """
    place = torch.cumsum(real, -1)
    return (real & (place <= n) if n else real), place[..., -1] >= max(1, n)


def largest_singular_value(x: Tensor) -> Tensor:
    """σ_1 of many matrices at once, `[…]` from `[…, m, n]`; NaN where one is not finite.

    Lanczos on XᵀX until σ_1² changes by less than 1e-4 over four steps, which mostly leaves an error of about 1e-6:
    some twenty products with a vector, where a decomposition takes n³.

    Example:
        >>> largest_singular_value(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])).tolist()
        [4.0, 2.0]
    """
    flat = x.reshape(-1, *x.shape[-2:])
    finite = flat.isfinite().flatten(1).all(1)
    pieces = flat.nan_to_num(0.0, 0.0, 0.0).split(max(1, _AT_ONCE // max(1, x.shape[-2] * x.shape[-1])))
    found = torch.cat([_lanczos(piece) for piece in pieces]) if len(flat) else flat.new_zeros(0)
    return torch.where(finite, found, torch.nan).reshape(x.shape[:-2])


def _lanczos(x: Tensor) -> Tensor:
    """σ_1 of a few finite matrices `[N, m, n]`. Vectors are rows: products with columns are much slower."""
    n = x.shape[-1]
    start = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(x)
    basis = (start / start.norm()).expand(len(x), 1, n)
    small = x.new_zeros(len(x), _STEPS, _STEPS)
    top, done = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for k in range(steps := min(n, _STEPS)):
        last = basis[:, k:]
        after = (last @ x.mT) @ x
        small[:, k, k] = (last * after).sum((1, 2))
        for _ in range(2):  # once more, as the first leaves rounding errors behind
            after = after - (after @ basis.mT) @ basis
        length = after.norm(dim=(1, 2))
        if k + 1 == steps or k % 4 == 3:
            before, now = top, torch.linalg.eigvalsh(small[:, : k + 1, : k + 1])[:, -1]
            # What has converged stays, whatever matrices are beside it.
            top = torch.where(done, top, now)
            done = done | (now - before <= _CHANGE * now)
            if done.all():
                break
        # Where all that the start reaches is seen, what is left is rounding.
        over = length > 1e-6 * small[:, : k + 1, : k + 1].diagonal(dim1=1, dim2=2).amax(-1)
        small[:, k, k + 1] = small[:, k + 1, k] = torch.where(over, length, 0.0)
        new = torch.where(over[:, None, None], after / length[:, None, None], 0.0)
        basis = torch.cat([basis, new], dim=1)
    return top.clamp_min(0.0).sqrt()
