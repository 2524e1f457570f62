"""Step that makes a model larger before training goes on: the atomic operators of growth, in depth and in width."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from layerwright.core.draft import Block, Draft, Weights, changed
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.frame import container_of, host_of
from layerwright.core.growth import wider_weight
from layerwright.core.starts import Start, drawn, starts
from layerwright.core.steps.choice import one_of, whole
from layerwright.core.steps.step import PRESERVING, step
from layerwright.core.wider import Widening, widening

# What each operator leaves of the function, in depth and in width.
PRESERVES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "depth": MappingProxyType({"direct": "none", "zero": "exact", "random": "none"}),
    "width": MappingProxyType({"direct": "exact", "zero": "approximate", "random": "none"}),
})  # fmt: skip


def _kept(depth: int, width: int, by: str, **rest: Any) -> str:
    """What is left of the function by both directions: the lesser of the two."""
    found = [PRESERVES[way].get(by, "none") for way, times in (("depth", depth), ("width", width)) if times != 1]
    return max(found, key=PRESERVING.index, default="none")


@step(preserving=_kept)
def grow(
    draft: Draft, depth: int = 1, width: int = 1, by: str = "direct", order: str = "stack", seed: int = 0
) -> Draft:
    """Make the model so many times as deep or as wide, by one of the operators of growth.

    With W_l the weights of block l and L the depth, the new block j is, by

        direct   W_{j mod L} (`stack`) or W_{j // times} (`split`)
        zero     the same, but what it adds to the stream is zero until it is trained: the function stays what it is
        random   as the model's class starts a block: normal numbers of its mean and spread, norms and biases fixed

    where blocks of the base stay what they are: the first L of a stack, the first of each few that are split.
    In width f the stream, and heads and hidden units where they can, become f times as many. A weight becomes, by

        direct   W'[a, b] = W[g(a), g(b)] / f, copies side by side: the function stays what it is
        zero     [[W, R], [0, R]]: what is new is zero until it is trained; norms are scaled by f^-1/2 for it, which
                 leaves the function nearly what it was where they take no mean away
        random   [[W, R], [R, R]], R as the model's class starts the weight

    Args:
        draft: the model so far.
        depth: how many times as deep.
        width: how many times as wide.
        by: the operator.
        order: `stack` puts new blocks on top, `split` each after the block that it takes after.
        seed: of random numbers.

    Reference: arXiv 2405.15319, where stacking by `direct` is best.
    """
    if whole(depth, "depth") == whole(width, "width") == 1:
        raise UserError("got depth 1 and width 1, which leave the model as it is; expected one of them above 1")
    one_of(by, "by", tuple(PRESERVES["depth"]))
    one_of(order, "order", ("stack", "split"))
    if depth > 1:
        draft = _deeper(draft, depth, by, order == "stack", seed)
    return _wider(draft, width, by, seed) if width > 1 else draft


# In depth


def _deeper(draft: Draft, times: int, by: str, stack: bool, seed: int) -> Draft:
    count = draft.depth
    places = [j % count if stack else j // times for j in range(count * times)]
    new = [j >= count if stack else bool(j % times) for j in range(count * times)]
    if by == "direct":
        return draft.pick(places)
    fresh = _Fresh(draft, seed)
    blocks = []
    for j, (k, is_new) in enumerate(zip(places, new)):
        block = draft.blocks[k]
        blocks.append((_silent(draft, block) if by == "zero" else fresh.block(j, block)) if is_new else block)
    return draft.of(blocks)


def _silent(draft: Draft, block: Block) -> Block:
    """The block with its last weights zero."""
    zero = {name: torch.zeros_like(block.weights[name]) for name in draft.anatomy.silencers(block.source)}
    return changed(block, zero)._replace(tied={})


class _Fresh:
    """Blocks that are started anew."""

    def __init__(self, draft: Draft, seed: int) -> None:
        self._draft, self._seed = draft, seed
        self._known: dict[tuple[object, ...], dict[str, Start]] = {}

    def block(self, place: int, like: Block) -> Block:
        """A fresh block of the kind of another, for a place in the new tower."""
        if not self._draft.as_is:
            raise NeedsModel("a fresh block")
        made = {}
        for name, start in self._starts(like).items():
            weight = like.weights[name]
            if start.fixed is not None and start.fixed.shape != weight.shape:
                raise UserError(f"{name} has another shape than in the base; grow by random before steps that widen")
            made[name] = drawn(weight, start, self._seed, f"{place} {name}")
        return changed(like, made)._replace(tied={})

    def _starts(self, like: Block) -> dict[str, Start]:
        stack = self._draft.anatomy.stack
        block = stack.blocks[stack.order[like.source]]
        make = (type(block), *((name, tuple(p.shape)) for name, p in block.named_parameters()))
        if make not in self._known:
            self._known[make] = starts(block, stack.model)
        return self._known[make]


# In width


def _wider(draft: Draft, factor: int, by: str, seed: int) -> Draft:
    if not draft.as_is:
        raise NeedsModel("a wider stream")
    config, stack = draft.config, host_of(draft.anatomy.stack)[1]
    plan = widening(stack.model, config, container_of(stack)[0], stack.width, factor)
    blocks = [_wider_block(j, block, plan, factor, by, seed) for j, block in enumerate(draft.blocks)]
    outside = {
        name: partial(wider_weight, role=role, factor=factor, by=by, seed=seed, name=name)
        for name, role in plan.outside.items()
    }
    draft = draft.of(blocks).around(outside)
    for name, value in plan.settings.items():
        if name in draft.settings:
            raise UserError(f"a step before this one changes {name}; grow in width before steps that widen")
        draft = draft.setting(name, value)
    return draft


def _wider_block(place: int, block: Block, plan: Widening, factor: int, by: str, seed: int) -> Block:
    made = Weights(block.weights)
    for name, role in plan.blocks[block.source].items():
        weight = block.weights[name]
        if tuple(weight.shape) != plan.shapes[block.source][name]:
            raise UserError(f"{name} has another shape than in the base; grow in width before steps that widen")
        # What blocks share stays one weight, and is drawn once.
        key = f"shared {block.tied[name]}" if name in block.tied else f"{place} {name}"
        made[name] = wider_weight(weight, role, factor, by, seed, key)
    return block._replace(weights=made)
