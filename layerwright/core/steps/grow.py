"""Step that makes a model deeper before training goes on: the atomic operators of growth."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from layerwright.core.draft import Block, Draft, changed
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.starts import Start, drawn, starts
from layerwright.core.steps.choice import one_of, whole
from layerwright.core.steps.step import step

# What each operator leaves of the function.
PRESERVES: Mapping[str, str] = MappingProxyType({"direct": "none", "zero": "exact", "random": "none"})


@step(preserving="none")
def grow(draft: Draft, depth: int, by: str = "direct", order: str = "stack", seed: int = 0) -> Draft:
    """Make the tower so many times as deep, by one of the operators of growth.

    With W_l the weights of block l and L the depth, the new block j is, by

        direct   W_{j mod L} (`stack`) or W_{j // times} (`split`)
        zero     the same, but what it adds to the stream is zero until it is trained: the function stays what it is
        random   as the model's class starts a block: normal numbers of its mean and spread, norms and biases fixed

    where blocks of the base stay what they are: the first L of a stack, the first of each few that are split.

    Args:
        draft: the model so far.
        depth: how many times as deep.
        by: the operator.
        order: `stack` puts new blocks on top, `split` each after the block that it takes after.
        seed: of random numbers.

    Reference: Du et al. 2024, Stacking Your Transformers (arXiv:2405.15319), where stacking by `direct` is best.
    """
    times = whole(depth, "depth", 2)
    one_of(by, "by", tuple(PRESERVES))
    stack = one_of(order, "order", ("stack", "split")) == "stack"
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
