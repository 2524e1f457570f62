"""The larger weights of a wide model, by the operators of growth."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from layerwright.core.recipe import noted
from layerwright.core.twins import rescaled
from layerwright.core.wider import Role
from layerwright.maths.growth import cornered, longer, repeated


def wider_weight(weight: Tensor, role: Role, factor: int, by: str, seed: int, name: str) -> Tensor:
    """A weight of the wide model, made when it is needed.

    Args:
        weight: of the base.
        role: what its axes are.
        factor: how many times as long they become.
        by: `direct`, `zero` or `random`.
        seed: of random numbers.
        name: so that each weight has random numbers of its own.
    """
    return noted(_wider, weight, role, factor, by, zlib.crc32(f"{seed} {name}".encode()))


def _wider(weight: Tensor, role: Role, factor: int, by: str, number: int) -> Tensor:
    parts = role.parts(weight.shape)
    if weight.is_meta:
        return torch.empty(longer(weight.shape, parts, factor), dtype=weight.dtype, device=weight.device)
    neutral = 1.0 if role.neutral is None else role.neutral
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if by == "direct":
        made = rescaled(repeated(wide, parts, factor, role.reads), role.scale, neutral)
    elif by == "zero":
        # The mean of squares over a stream of which only a part is not zero is so many times smaller.
        scale = role.alone * (1.0 if role.neutral is None else factor**-0.5)
        made = cornered(rescaled(wide, scale, neutral), parts, factor, _silent(wide, role, parts, factor, number))
    else:
        made = cornered(wide, parts, factor, _fresh(wide, role, parts, factor, number))
    return made.to(weight.dtype)


def _silent(weight: Tensor, role: Role, parts: dict[int, list[int]], factor: int, number: int) -> Tensor:
    """Zeros where old numbers are read, so that new ones are zero, and fresh weights where new ones are read."""
    fresh = _fresh(weight, role, parts, factor, number)
    if role.neutral is not None:
        return torch.full_like(fresh, role.neutral)
    if role.reads is None or role.reads not in parts:
        return torch.zeros_like(fresh)
    old = {role.reads: parts[role.reads]}
    column = torch.zeros([n if axis == role.reads else 1 for axis, n in enumerate(weight.shape)])
    new = cornered(column, old, factor, torch.ones(longer(column.shape, old, factor)))
    return fresh * new.to(fresh)


def _fresh(weight: Tensor, role: Role, parts: dict[int, list[int]], factor: int, number: int) -> Tensor:
    """A whole larger weight as the model's class starts it."""
    start, shape = role.start, longer(weight.shape, parts, factor)
    if start.fixed is not None and start.spread == 0:
        return torch.full(shape, start.mean, dtype=weight.dtype, device=weight.device)
    if start.fixed is not None:  # always the same numbers, but not one: their order is what counts
        return repeated(weight, parts, factor)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(number)) * start.spread + start.mean
    return drawn.to(weight)
