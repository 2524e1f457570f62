"""Steps that choose which blocks run, and in which order."""

from __future__ import annotations

from typing import Any

from layerwright.core.draft import Draft
from layerwright.core.errors import UserError
from layerwright.core.steps.choice import blocks_of, once, one_of, stretch, whole
from layerwright.core.steps.step import step


@step(preserving="none", chooses=True)
def drop(draft: Draft, blocks: Any) -> Draft:
    """Leave blocks out.

    Args:
        draft: the model so far.
        blocks: which.
    """
    left_out = set(once(blocks, draft.depth))
    return draft.pick(k for k in range(draft.depth) if k not in left_out)


@step(preserving="none", chooses=True)
def keep(draft: Draft, blocks: Any) -> Draft:
    """Leave all other blocks out.

    Args:
        draft: the model so far.
        blocks: which to keep, in their old order.
    """
    places = once(blocks, draft.depth)
    if places != sorted(places):
        raise UserError(f"got {blocks!r}; expected blocks in their old order; `order` changes it")
    return draft.pick(places)


@step(preserving="none", chooses=True)
def order(draft: Draft, blocks: Any) -> Draft:
    """Run these blocks in this order; a block may come several times, and is copied then.

    Args:
        draft: the model so far.
        blocks: which.
    """
    return draft.pick(blocks_of(blocks, draft.depth))


@step(preserving="none", chooses=True)
def loop(draft: Draft, blocks: Any, times: int = 2, share: str = "copy") -> Draft:
    """Run a stretch of blocks several times, one after the other.

    Args:
        draft: the model so far.
        blocks: the stretch.
        times: how often it runs in all.
        share: `copy` gives each pass weights of its own, `weights` gives all passes the same.
    """
    places = stretch(blocks, draft.depth)
    whole(times, "times", 2)
    if one_of(share, "share", ("copy", "weights")) == "weights":
        draft = _shared(draft, places)
    return draft.pick([*range(places.start), *list(places) * times, *range(places.stop, draft.depth)])


@step(preserving="none", chooses=True)
def stack(draft: Draft, times: int) -> Draft:
    """Put copies of the whole tower on top of it, as growth by stacking does before training goes on.

    Block l of the result is block l mod L of the tower before.

    Args:
        draft: the model so far.
        times: how many towers the result is.
    """
    return draft.pick(list(range(draft.depth)) * whole(times, "times", 2))


def _shared(draft: Draft, places: range) -> Draft:
    """Each weight of these blocks with a number of its own, which its copies will have too."""
    blocks = list(draft.blocks)
    for k in places:
        first = draft.fresh()
        own = {name: first + n for n, name in enumerate(n for n in blocks[k].weights if n not in blocks[k].tied)}
        blocks[k] = blocks[k]._replace(tied={**blocks[k].tied, **own})
        draft = draft.of(blocks)
    return draft
