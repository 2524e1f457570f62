"""A user's script for torchrun that surveys wrapped models in many ways and writes down what every rank saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from zoo import VOCABULARY, llama, token_ids

import layerwright as lw

TOKENS = 20
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def plain(*sizes: int) -> list[dict[str, Tensor]]:
    """Batches of so many sequences."""
    return [{"input_ids": token_ids(n, TOKENS, seed=k)} for k, n in enumerate(sizes)]


def ragged(*sizes: int) -> list[dict[str, Tensor]]:
    """The same with padding on the right, longest sequences of any length."""
    made = []
    for k, batch in enumerate(plain(*sizes)):
        lengths = torch.randint(4, TOKENS + 1, (sizes[k], 1), generator=torch.Generator().manual_seed(k))
        mask = (torch.arange(TOKENS) < lengths).long()
        made.append({"input_ids": batch["input_ids"] * mask, "attention_mask": mask})
    return made


def sharded(model: nn.Module, **how: Any) -> nn.Module:
    """FSDP2 as its documentation wraps a model: every block, then the whole."""
    for block in model.model.layers:
        fully_shard(block, **how)
    return fully_shard(model, **how)


WRAPS: dict[str, Callable[..., nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp": sharded,
    "half": lambda model: sharded(model, mp_policy=HALF),
    "offload": lambda model: sharded(model, offload_policy=CPUOffloadPolicy(pin_memory=False)),
}
# What to survey, with which wrapper.
DATA: dict[str, tuple[str, list[dict[str, Tensor]]]] = {
    "ddp, uneven": ("ddp", plain(3, 3, 2, 3, 1)),
    "ddp, padded": ("ddp", ragged(3, 3, 3, 2)),
    "fsdp, even": ("fsdp", plain(2, 2, 2, 2)),
    "fsdp, uneven": ("fsdp", plain(3, 3, 2, 3, 1)),
    "fsdp, padded": ("fsdp", ragged(3, 3, 3, 3, 3, 2)),
    "fsdp, one batch": ("fsdp", plain(4)),
    "offload, even": ("offload", plain(2, 2)),
}


def trained(model: nn.Module, wrap: str, survey_before: int | None) -> list[Tensor]:
    """Weights after two steps, with a survey before one of them."""
    model = WRAPS[wrap](model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(2):
        if step == survey_before:
            found = [(type(p), p.requires_grad, p.grad is None) for p in model.parameters()]
            lw.survey(model, plain(2, 2))
            assert [(type(p), p.requires_grad, p.grad is None) for p in model.parameters()] == found
            assert all(m.training for m in model.modules())
        ids = token_ids(2, seed=10 * step + dist.get_rank())
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def unchanged(wrap: str) -> bool:
    """Whether training goes on after a survey, before the first step or between two, as if there had been none."""
    expected = trained(llama(), wrap, None)
    return all(
        torch.equal(a, b) for step in range(2) for a, b in zip(trained(llama(), wrap, step), expected, strict=True)
    )


def message(*args: Any, **options: Any) -> str:
    """What a survey is refused with."""
    try:
        lw.survey(*args, **options)
    except lw.UserError as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    """Messages on this rank."""
    model, rank = WRAPS["fsdp"](llama()), dist.get_rank()
    bad = [{"input_ids": torch.full((2, TOKENS), VOCABULARY)}]
    return {
        "bad on every rank": message(model, bad),
        "bad on one": message(model, bad if rank == 1 else plain(2)),
        "other data": message(model, plain(2 + rank)),
        "other seed": message(model, plain(2), seed=rank),
        "jobs": message(model, plain(2), jobs="serial"),
        "whole model only": message(fully_shard(llama()), plain(2)),
        "after all": message(model, plain(2)),
    }


def main(out: Path) -> None:
    """Everything, into a folder."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    seen: dict[str, Any] = {}
    for name, (wrap, data) in DATA.items():
        # Every rank names a folder of its own, so that it is seen who writes.
        result = lw.survey(WRAPS[wrap](llama()), data, tier="deep", out=out / f"{name}-{rank}")
        seen[name] = result.to_dict()
    seen["half"] = lw.survey(WRAPS["half"](llama()), plain(2, 2)).to_dict()
    seen["unchanged"] = {wrap: unchanged(wrap) for wrap in WRAPS}
    seen["refusals"] = refusals()
    (out / f"rank-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
