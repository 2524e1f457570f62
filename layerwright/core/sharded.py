"""What must be known of a model whose weights FSDP2 (`fully_shard`) spreads over ranks, beside what any model has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError


def gathers(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a module, so that a call of it gathers weights from all ranks."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was applied to, outer before inner."""
    return [m for m in model.modules() if gathers(m)]


def is_sharded(p: Tensor) -> bool:
    """Whether this rank holds only a part of a parameter."""
    return hasattr(p, "full_tensor")


def whole(p: Tensor) -> Tensor:
    """All numbers of a parameter; of a sharded one every rank must ask at the same time."""
    p = p.detach()
    gathered: Any = p.to(device_of(p))  # weights that wait on the CPU cannot be gathered by NCCL
    return gathered.full_tensor() if is_sharded(p) else p


def device_of(p: Tensor) -> torch.device:
    """Where a parameter is computed with, also where FSDP2 keeps it on the CPU in between."""
    mesh = getattr(p, "device_mesh", None)
    return p.device if mesh is None or mesh.device_type == p.device.type else torch.device(mesh.device_type)


def reshard(model: nn.Module, failed: bool = False) -> None:
    """Free the gathered weights that FSDP2 keeps after a call; with `failed`, forget a call that was broken off."""
    for m in sharded_modules(model):
        if failed and hasattr(m, "reset_iter_state"):  # torch 2.13
            with suppress(RuntimeError):  # not an outermost one
                m.reset_iter_state()
        m.reshard()


def check_blocks(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Hold that every block gathers its own weights: blocks are called one by one.

    Raises:
        UserError: the weights of a block are gathered by a call of a module around it.
    """
    inside = {inner for m in sharded_modules(model) for inner in m.modules()}
    for path, block in blocks.items():
        if block in inside and not _gathers_all(block):
            raise UserError(
                f"the block {path} is sharded only as a part of what is around it; expected every block to be sharded "
                "on its own; call fully_shard on each block before the whole model"
            )


def _gathers_all(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return gathers(module) or (own is None and all(map(_gathers_all, module.children())))
