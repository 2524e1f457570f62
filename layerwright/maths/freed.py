"""What the C library does with memory that is freed."""

from __future__ import annotations

from functools import cache

import torch

# Of the pieces that glibc keeps the largest, but for its own few bytes.
_LARGEST = 2**25 - 2**16


@cache
def keep_freed() -> None:
    """Have glibc keep pieces of up to 32 MB for what comes next, for the rest of the process.

    Else each goes back to the system and comes in again page by page, which can take as long as what is done with it.
    One piece of that size, freed, teaches it so; once, as another would make it give back all that lies before it.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
