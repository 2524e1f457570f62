"""Make a tower of a few blocks that run several times."""

from __future__ import annotations

from collections.abc import Sequence

from layerwright.core.errors import UserError
from layerwright.core.plan import Plan
from layerwright.core.planner import planner
from layerwright.core.steps.choice import one_of, whole


@planner(paper="2410.20672")
def recursive(
    parameters: int,
    block_parameters: int,
    depth: int,
    matrices: Sequence[Sequence[tuple[int, int]]],
    *,
    unique: int | None = None,
    init: str | None = None,
    rank: int = 0,
) -> Plan:
    """Share weights over depth: K unique blocks run L/K times, with a low-rank correction for each depth.

    Depth l runs unique block l mod K:

        W_l ≈ W'_{l mod K} + B_l·A_l,   rank(B_l·A_l) ≤ r

    W' starts as the average over the loops, or from the blocks at even intervals (stepwise), or the first K (lower).
    Published results are best with stepwise where r = 0 and with average where r > 0, which is what is taken unless
    `init` says otherwise. Norms and biases stay each depth's own. Without full rank the result has to be trained.

    Args:
        parameters: of the model.
        block_parameters: of its blocks.
        depth: L.
        matrices: shapes of the weight matrices, by block.
        unique: K, a divisor of L; the largest up to L/2 unless given.
        init: `average`, `stepwise` or `lower`.
        rank: r of the corrections; 0 for none.

    Returns:
        a plan with one `recurse` step.

    Raises:
        UserError: K is no divisor of L below it, corrections of this rank take more than sharing saves, or the blocks
            have matrices of different shapes or run several times already.

    Example:
        >>> recursive(130, 120, 6, [[(4, 5)]] * 6, unique=2).steps
        ({'recurse': {'unique': 2, 'init': 'stepwise', 'rank': 0}},)

    Reference: arXiv 2410.20672.
    """
    chosen, corrections = _unique(unique, depth), whole(rank, "rank", 0)
    start = ("average" if corrections else "stepwise") if init is None else init
    one_of(start, "init", ("average", "stepwise", "lower"))
    if len(matrices) < depth:
        raise UserError(f"the tower runs {len(matrices)} blocks {depth} times: it is recursive already")
    if other := next((k for k, shapes in enumerate(matrices) if list(shapes) != list(matrices[0])), None):
        raise UserError(f"blocks 0 and {other} have matrices of different shapes; expected blocks of one make to share")
    step = {"unique": chosen, "init": start, "rank": corrections}
    shared = sum(rows * columns for rows, columns in matrices[0])
    added = depth * corrections * sum(rows + columns for rows, columns in matrices[0])
    saved = (len(matrices) - chosen) * shared - added
    if saved <= 0:
        raise UserError(
            f"got rank {corrections}, whose corrections take {added:,} parameters where sharing saves "
            f"{(len(matrices) - chosen) * shared:,}; expected a lower rank"
        )
    why = (
        f"{chosen} unique blocks run {depth // chosen} times leave {parameters - saved:,} of {parameters:,} parameters "
        f"({1 - saved / parameters:.0%})"
    )
    why += f", {added:,} of them in corrections of rank {corrections}" if corrections else ""
    why += (
        f"; {start} is {_reason(start, corrections)}; the blocks hold {block_parameters / parameters:.0%} of the model."
    )
    return Plan(({"recurse": step},), why=why)


def _unique(unique: int | None, depth: int) -> int:
    divisors = [k for k in range(1, depth) if depth % k == 0]
    if not divisors:
        raise UserError(f"a tower of {depth} block has nothing to share; expected at least two")
    chosen = divisors[-1] if unique is None else whole(unique, "unique")
    if chosen not in divisors:
        raise UserError(f"got unique {chosen}; expected a divisor of the depth {depth} below it: {divisors}")
    return chosen


def _reason(init: str, rank: int) -> str:
    best = "average" if rank else "stepwise"
    kind = "with corrections" if rank else "without corrections"
    return f"the best start published {kind}" if init == best else f"not the best start published {kind}: {best} is"
