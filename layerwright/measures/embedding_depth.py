"""How central each sequence's state is among those of its corpus, and whether another corpus lies elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.registry import measure
from layerwright.maths.resampling import share_below
from layerwright.maths.statistical_depth import depth_among, depth_within

_NAMES = ("median", "spread", "other_median", "other_below", "rank_sum", "p_value")


@measure(unit=dict.fromkeys(_NAMES, "1"), tier="deep", paper="2310.15010", index=("point",))
def embedding_depth(summaries: Tensor, other_summaries: Tensor) -> dict[tuple[int, str], float]:
    """Depth of each sequence's state among those of its corpus, at every point, and that of another corpus in it.

    With u the states at length 1, F the corpus of N sequences,

        D(x, F) = 2 − mean_{y∈F, y≠x} (1 − cos(x, y)) = 2 − N/(N−1) (1 − u_x·ū)

    `median` and `spread` (between quartiles) are those of D(x, F) over F: 2 where all point the same way, 1 where they
    are at right angles. With another corpus G of the same model, or of one with the same basis: `other_median` of
    D(g, F), `other_below`, the mean over G of the share of F that lies less deep (Q, 1/2 for corpora alike), and the
    Wilcoxon rank sum test of whether F is deeper: `rank_sum` is its normal score, `p_value` one-sided. D takes N d
    operations, not N² d.

    Args:
        summaries: every state of each sequence, `[L + 1, S, d]`.
        other_summaries: those of the other corpus, `[L' + 1, S', d]`; where they are the same ones, as without another
            corpus, nothing is compared.

    Returns:
        by point and quantity; no number where states are not finite.

    Raises:
        UserError: there is one sequence only.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
        >>> found = embedding_depth(f, torch.tensor([[[0.0, 5.0]]]))
        >>> [round(found[0, name], 4) for name in ("median", "spread", "other_median", "other_below")]
        [1.5, 0.25, 1.3333, 0.3333]

    Reference: arXiv 2310.15010.
    """
    if summaries.shape[1] < 2:
        raise UserError("got 1 sequence; depth is among others: give more data")
    same_space = summaries.shape[::2] == other_summaries.shape[::2] and other_summaries.shape[1] > 0
    compared = same_space and not torch.equal(summaries, other_summaries)
    found: dict[tuple[int, str], float] = {}
    for point, f in enumerate(summaries):
        own = depth_within(f)
        low, median, high = own.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=own.dtype, device=own.device)).tolist()
        numbers = {"median": median, "spread": high - low}
        if compared:
            numbers |= _beside(own, depth_among(other_summaries[point], f))
        found |= {(point, name): value for name, value in numbers.items()}
    return found


def _beside(own: Tensor, other: Tensor) -> dict[str, float]:
    """The other corpus beside this one, by depths in this one."""
    from scipy.stats import ranksums  # takes half a second to import, in every worker

    if not (own.isfinite().all() and other.isfinite().all()):
        return dict.fromkeys(("other_median", "other_below", "rank_sum", "p_value"), float("nan"))
    test = ranksums(own.cpu().numpy(), other.cpu().numpy(), alternative="greater")
    return {
        "other_median": float(other.quantile(0.5)),
        "other_below": share_below(own, other),
        "rank_sum": float(test.statistic),
        "p_value": float(test.pvalue),
    }
