"""Step that makes a model larger before training goes on: the atomic operators of growth, in depth and in width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from layerwright.core.draft import Block, Draft, Weights, changed
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.frame import container_of, host_of
from layerwright.core.growth import wider_weight
from layerwright.core.mixing import ALL, mixture
from layerwright.core.recipe import noted
from layerwright.core.registry import nearest
from layerwright.core.starts import Start, drawn, starts
from layerwright.core.steps.choice import one_of, whole
from layerwright.core.steps.step import PRESERVING, step
from layerwright.core.wider import Widening, widening

# What each operator leaves of the function, in depth and in width.
PRESERVES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "depth": MappingProxyType({"direct": "none", "zero": "exact", "random": "none", "learn": "none"}),
    "width": MappingProxyType({"direct": "exact", "zero": "approximate", "random": "none"}),
})  # fmt: skip


def _kept(depth: int, width: int, by: str, **rest: Any) -> str:
    """What is left of the function by both directions: the lesser of the two."""
    found = [PRESERVES[way].get(by, "none") for way, times in (("depth", depth), ("width", width)) if times != 1]
    return max(found, key=PRESERVING.index, default="none")


@step(preserving=_kept)
def grow(
    draft: Draft, depth: int = 1, width: int = 1, by: str = "direct", order: str = "stack", seed: int = 0,
    mix: Any = None,
) -> Draft:  # fmt: skip
    """Make the model so many times as deep or as wide, by one of the operators of growth.

    With W_l the weights of block l and L the depth, the new block j is, by

        direct   W_{j mod L} (`stack`) or W_{j // times} (`split`)
        zero     the same, but what it adds to the stream is zero until it is trained: the function stays what it is
        random   as the model's class starts a block: normal numbers of its mean and spread, norms and biases fixed
        learn    Σ_l D[j, l]·W_l, with a matrix D for each kind of weight that was learned before (`learned_growth`)

    where but for `learn` blocks of the base stay what they are: the first L of a stack, the first of each few that are
    split.

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
        mix: with `learn`, matrices D of times·L rows of L numbers, by the name of a weight in its block; one called
            `all` is for all that have none. A weight without a matrix is that of `direct`.

    Reference: arXiv 2405.15319, where stacking by `direct` is best; arXiv 2303.00980 for `learn`.
    """
    if whole(depth, "depth") == whole(width, "width") == 1:
        raise UserError("got depth 1 and width 1, which leave the model as it is; expected one of them above 1")
    one_of(by, "by", tuple(PRESERVES["depth"]))
    one_of(order, "order", ("stack", "split"))
    _check_mix(mix, by, width)
    if by == "learn":
        return _mixed(draft, depth, order == "stack", mix)
    if depth > 1:
        draft = _deeper(draft, depth, by, order == "stack", seed)
    return _wider(draft, width, by, seed) if width > 1 else draft


# In depth


def _places(count: int, times: int, stack: bool) -> list[int]:
    """The block that each block of the deeper tower takes after."""
    return [j % count if stack else j // times for j in range(count * times)]


def _deeper(draft: Draft, times: int, by: str, stack: bool, seed: int) -> Draft:
    count = draft.depth
    places = _places(count, times, stack)
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


# By mixtures of all blocks

Matrix = Sequence[Sequence[float]]
_LARGEST = torch.finfo(torch.float32).max


def _check_mix(mix: Any, by: str, width: int) -> None:
    """Hold what is mixed against the operator."""
    if by != "learn":
        if mix is not None:
            raise UserError(f"got mix with by: {by}; expected by: learn, as nothing else mixes blocks")
        return
    if width > 1:
        raise UserError(
            f"got width {width} with by: learn; expected depth alone: in width what is learned is matrices as large as "
            "the weights, which no plan can hold"
        )
    if not isinstance(mix, Mapping) or not mix:
        raise UserError(
            "got by: learn without matrices; expected them by names of weights, as in `mix: {all: [[1, 0], ...]}`; "
            "--plan-with learned_growth finds them"
        )


def _mixed(draft: Draft, times: int, stack: bool, mix: Mapping[str, Any]) -> Draft:
    """Blocks whose weights are sums over the blocks there are, each weight times a number."""
    places = _places(draft.depth, times, stack)
    matrices = _matrices(mix, draft, len(places))
    blocks = []
    for j, place in enumerate(places):
        block = draft.blocks[place]
        rows = {name: matrices[name][j] for name in block.weights if name in matrices}
        made = {name: _mixture(draft, block, name, row) for name, row in rows.items()}
        copies = {name: draft.blocks[row.index(1)] for name, row in rows.items() if _one(row)}
        tied = {name: other.tied[name] for name, other in copies.items() if name in other.tied}
        block = changed(block, made)
        blocks.append(block._replace(tied={**block.tied, **tied}))
    return draft.of(blocks)


def _mixture(draft: Draft, like: Block, name: str, row: Sequence[float]) -> Tensor:
    """One weight of a block; a copy as long as it is one block's."""
    own, weights = like.weights[name], []
    factors = {k: factor for k, factor in enumerate(row) if factor}
    for k in factors:
        weight = draft.blocks[k].weights.get(name)
        if weight is None or (weight.shape, weight.dtype) != (own.shape, own.dtype):
            raise UserError(
                f"block {k} holds no {name} of the shape {list(own.shape)} and dtype of others; expected blocks of one "
                "make to mix"
            )
        weights.append(weight)
    if not factors:
        return torch.zeros_like(own)
    return weights[0] if _one(row) else noted(mixture, tuple(factors.values()), *weights)


def _one(row: Sequence[float]) -> bool:
    """Whether it picks one block as it is."""
    return max(row) == 1 and sum(map(bool, row)) == 1


def _matrices(mix: Mapping[str, Any], draft: Draft, rows: int) -> dict[str, Matrix]:
    """The matrix of each weight that has one."""
    held = {name: weight.is_floating_point() for block in draft.blocks for name, weight in block.weights.items()}
    for name in mix:
        if name != ALL and name not in held:
            if not draft.as_is:
                raise NeedsModel(f"{name}, which is stored in another form,")
            near = nearest(str(name), held)
            raise UserError(f"mix names {name!r}, which no block holds; did you mean {near!r}?")
        if not held.get(name, True):
            raise UserError(f"mix names {name!r}, which holds whole numbers; expected weights that can be added up")
    found = {name: _matrix(name, given, rows, draft.depth) for name, given in mix.items()}
    everywhere = found.pop(ALL, None)
    rest = {} if everywhere is None else {name: everywhere for name, floats in held.items() if floats}
    return rest | found


def _matrix(name: str, given: Any, rows: int, columns: int) -> Matrix:
    """A matrix of a plan, checked."""
    lists = isinstance(given, list) and all(isinstance(row, list) for row in given)
    widths = sorted({len(row) for row in given}) if lists else []
    if not lists or len(given) != rows or widths != [columns]:
        got = f"{len(given)} rows of {' or '.join(map(str, widths))} numbers" if lists else f"{type(given).__name__}"
        raise UserError(
            f"got {got} as the mix of {name}; expected {rows} lists, one for each new block, of {columns} numbers, one "
            "for each old block"
        )
    for x in (x for row in given for x in row):
        if not isinstance(x, (int, float)) or isinstance(x, bool) or not abs(x) <= _LARGEST:
            raise UserError(f"got {x!r} in the mix of {name}; expected a finite number")
    return given


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
