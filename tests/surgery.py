"""Depth surgery by hand, right and wrong: what the ladder must let pass, and what it must not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from naive import blocks_of
from torch import nn
from zoo import language_model, llama, token_ids

from layerwright.core.rungs.case import Case

FULL, SLIDING = "full_attention", "sliding_attention"


def reordered(
    model: nn.Module,
    order: Sequence[int],
    *,
    numbers: bool = True,
    depth: bool = True,
    kinds: bool = True,
    copies: bool = True,
) -> nn.Module:
    """A Llama, GPT-2 or Gemma of other blocks. Each flag that is off leaves out what a script forgets.

    Args:
        model: the base.
        order: the source of each block.
        numbers: renumber `layer_idx`.
        depth: set the depth in the configuration.
        kinds: remap `layer_types`.
        copies: give a repeated block a module of its own.
    """
    new = copy.deepcopy(model).eval()
    old = list(blocks_of(new))
    blocks = [copy.deepcopy(old[k]) if copies else old[k] for k in order]
    for j, block in enumerate(blocks if numbers else ()):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = j
    owner, name = (new.model, "layers") if hasattr(new, "model") else (new.transformer, "h")
    setattr(owner, name, nn.ModuleList(blocks))
    if depth:
        new.config.num_hidden_layers = len(blocks)
    if kinds and getattr(new.config, "layer_types", None):
        new.config.layer_types = [new.config.layer_types[k] for k in order]
    return new


def gemma(kinds: Sequence[str] = (SLIDING, FULL, SLIDING)) -> nn.Module:
    """A Gemma 3 whose window is shorter than the sequences."""
    return language_model(
        "Gemma3Text", "Gemma3ForCausalLM", num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=list(kinds)
    )


def case(order: Sequence[int] = (0, 2, 1, 2), base: nn.Module | None = None, **more: Any) -> Case:
    """A Llama (or another base) and its reordered copy; `after` and other attributes of a case as given."""
    base = llama().eval() if base is None else base.eval()
    given = {"after": None, "inputs": {"input_ids": token_ids()}, "order": order, "copies": True} | more
    after = given.pop("after")
    return Case(base, reordered(base, order) if after is None else after, **given)


def climb(rung: Callable[[Case], Any], given: Case) -> Any:
    """One rung, as `verify` climbs it."""
    with given.quiet():
        return rung(given)


def saved(model: nn.Module, folder: Path) -> Path:
    """The folder of a model."""
    model.save_pretrained(folder)
    return folder


def nudged(weight: torch.Tensor, place: int = 0) -> None:
    """Change one number by one unit in the last place."""
    with torch.no_grad():
        flat = weight.view(-1)
        flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))
