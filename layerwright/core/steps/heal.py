"""Step that puts one fitted block in place of several."""

from __future__ import annotations

from typing import Any

from layerwright.core.draft import Draft, changed
from layerwright.core.errors import UserError
from layerwright.core.steps.choice import blocks_of, stretch
from layerwright.core.steps.step import step


@step(preserving="approximate")
def heal(draft: Draft, blocks: Any, by: Any = None) -> Draft:
    """Replace a stretch of blocks by one of them, whose last matrix is fitted to what the stretch does.

    With h the states before the stretch a … b-1, and z(h) what the last matrix W of block `by` reads,

        W' = argmin_W Σ_t ‖ h_b − f(h_a; W) ‖² + λ ‖ W − W_by ‖²,    f(h; W) = f(h; 0) + W z(h)

    in closed form over the tokens of the data, λ a ten-thousandth of the mean of z².

    Args:
        draft: the model so far.
        blocks: the stretch.
        by: the block of the stretch that stays; the first unless given.
    """
    places = stretch(blocks, draft.depth)
    if len(places) < 2:
        raise UserError(f"got {blocks!r}; expected a stretch of at least two blocks, such as '4:8'")
    (kept,) = [places.start] if by is None else blocks_of(by, draft.depth)[:1]
    if kept not in places:
        raise UserError(f"got by {by!r}; expected a block of the stretch {places.start} to {places.stop - 1}")
    sources = [draft.blocks[k].source for k in places]
    copies = all(getattr(w, "copy", False) for k in places for w in draft.blocks[k].weights.values())
    if sources != list(range(sources[0], sources[0] + len(sources))) or not copies:
        raise UserError("expected blocks of the base as they are and in their order; heal before other steps")
    fitted = draft.anatomy.fitted(sources[0], sources[-1] + 1, draft.blocks[kept].source)
    block = changed(draft.blocks[kept], fitted)
    return draft.of([*draft.blocks[: places.start], block, *draft.blocks[places.stop :]])
