"""Leave out the blocks that turn the stream least, one by one."""

from __future__ import annotations

import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.plan import Plan
from layerwright.core.planner import fewer_than, in_words, planner


@planner(paper="2403.03853")
def drop_by_influence(block_influence: pd.DataFrame, *, blocks: int = 1) -> Plan:
    """Leave out the n blocks whose output points most nearly where their input did.

    The n smallest of

        1 − cos(h_l, h_{l+1})

    mean over tokens. Each block is judged in the unchanged model: what leaving out one does to the others is not seen.

    Args:
        block_influence: the measure.
        blocks: n, how many to leave out.

    Returns:
        a plan with one `drop` step.

    Raises:
        UserError: fewer than one block or all of them.

    Example:
        >>> frame = pd.DataFrame({"block": [0, 1, 2, 3], "value": [0.5, 0.1, 0.3, 0.05]})
        >>> drop_by_influence(frame, blocks=2).steps
        ({'drop': [1, 3]},)

    Reference: arXiv 2403.03853.
    """
    values = block_influence.set_index("block")["value"].astype(float)
    count = fewer_than(blocks, len(values))
    ranked = values.dropna().sort_values(kind="stable")
    if len(ranked) < count:
        raise UserError(f"only {len(ranked)} blocks have an influence that is a number; look for NaN in the survey")
    chosen = sorted(int(b) for b in ranked.index[:count])
    many = count > 1
    why = (
        f"{in_words(chosen).capitalize()} ha{'ve' if many else 's'} the least influence (1 − cosine between input and "
        f"output), {'at most ' * many}{ranked.iloc[count - 1]:.4f}; the mean of all {len(values)} blocks is "
        f"{values.mean():.4f}."
    )
    return Plan(({"drop": chosen},), why=why)
