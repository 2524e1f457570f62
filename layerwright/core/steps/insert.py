"""Step that grows depth and leaves the function as it is: blocks whose output projections are zero."""

from __future__ import annotations

from typing import Any

import torch

from layerwright.core.draft import Block, Draft, changed
from layerwright.core.steps.choice import once
from layerwright.core.steps.step import step


@step(preserving="exact")
def insert(draft: Draft, after: Any) -> Draft:
    """Put a copy of each of these blocks after it, silent until it is trained: its last weights are zero.

    What a silent block adds to the stream is exactly nothing, while gradients reach the zeros.

    Args:
        draft: the model so far.
        after: which blocks.
    """
    places = set(once(after, draft.depth))
    blocks: list[Block] = []
    for k, block in enumerate(draft.blocks):
        blocks.append(block)
        if k in places:
            zero = {name: torch.zeros_like(block.weights[name]) for name in draft.anatomy.silencers(block.source)}
            blocks.append(changed(block, zero)._replace(tied={}))
    return draft.of(blocks)
