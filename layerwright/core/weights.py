"""Weights: every matrix of every distinct block, and a check that all numbers are finite."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from layerwright.core.desk import Desk
from layerwright.core.sharded import whole
from layerwright.core.stack import Stack


def matrices(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and matrix of every weight of a block with two axes or more: convolutions as out x (in · kernel).

    Experts stored in one tensor `[experts, rows, columns]` of a module that is no convolution come one by one.
    """
    for path, module in block.named_modules():
        prefix = f"{path}." if path else ""
        for name, p in module.named_parameters(recurse=False):
            if p.ndim < 2 or not p.is_floating_point() or p.is_meta:
                continue
            label = prefix + (name if name != "weight" else "")
            label = label.rstrip(".")
            if p.ndim == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                for expert, matrix in enumerate(whole(p)):
                    yield f"{label}[{expert}]", matrix
            else:
                yield label, whole(p).flatten(1)


def give_weights(stack: Stack, desk: Desk | None, b: int) -> None:
    """Feed the weight measures with the matrices of one distinct block; with no desk, only help others to gather."""
    for name, matrix in matrices(stack.blocks[b]):
        if desk is not None:
            desk.give("weight", (b, name), {"weight": matrix})
    if desk is not None:
        desk.close("weight", None)


def nonfinite_weights(stack: Stack, b: int) -> list[str]:
    """One line for each parameter of a distinct block that holds NaN or infinite numbers."""
    lines = []
    for name, p in stack.blocks[b].named_parameters():
        if not p.is_floating_point() or p.is_meta:
            continue
        # A sum is finite unless something in it is not (or it overflows): one fast read finds the clean ones.
        if not (values := whole(p)).float().sum().isfinite():
            bad = int((~values.isfinite()).sum())
            if bad:
                where = ", ".join(str(k) for k, i in enumerate(stack.order) if i == b)
                lines.append(f"block {where}: {name} holds {bad} NaN or infinite of {p.numel()} numbers")
    return lines
