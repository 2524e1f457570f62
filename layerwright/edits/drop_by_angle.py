"""Leave out the stretch of blocks that turns the stream least."""

from __future__ import annotations

import pandas as pd
import torch

from layerwright.core.errors import UserError
from layerwright.core.paths import Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import fewer_than, in_words, planner
from layerwright.core.steps.choice import one_of
from layerwright.maths.similarity import angle


@planner(paper="2403.17887")
def drop_by_angle(angular_distance: pd.DataFrame, paths: Paths, *, blocks: int = 1, tokens: str = "last") -> Plan:
    """Leave out the n neighbouring blocks over which the stream turns least.

    The first block of the stretch is

        argmin_l arccos(cos(h_l, h_{l+n})) / π

    with the mean over sequences, at each one's last token (as published) or over all tokens. The states are those
    between blocks: the state after the last block is taken before the final norm.

    Args:
        angular_distance: the measure, with every gap.
        paths: the model on the data, run only for `tokens="all"`.
        blocks: n, how many to leave out.
        tokens: `last` or `all`.

    Returns:
        a plan with one `drop` step.

    Raises:
        UserError: fewer than one block or all of them, or another word for the tokens.

    Example:
        >>> frame = pd.DataFrame({"block": [0, 1, 2, 0, 1], "gap": [1, 1, 1, 2, 2], "value": [0.3, 0.1, 0.2, 0.4, 0.2]})
        >>> drop_by_angle(frame, None, blocks=2).steps
        ({'drop': [1, 2]},)

    Reference: arXiv 2403.17887.
    """
    depth = int(angular_distance["block"].max()) + 1
    count = fewer_than(blocks, depth)
    if one_of(tokens, "tokens", ("last", "all")) == "last":
        windows = angular_distance[angular_distance["gap"] == count].set_index("block")["value"].astype(float)
    else:
        windows = over_all_tokens(paths, count)
    windows = windows.dropna().sort_values(kind="stable")
    if windows.empty:
        raise UserError(f"no stretch of {count} blocks has an angle that is a number; look for NaN in the survey")
    first = int(windows.index[0])
    chosen = list(range(first, first + count))
    why = (
        f"{in_words(chosen).capitalize()} turn{'s' * (count == 1)} the stream by {windows.iloc[0]:.3f} π at "
        f"{'the last token' if tokens == 'last' else 'a token'}, the least of {len(windows)} stretches of {count}"
    )
    if len(windows) > 1:
        why += f"; next is {int(windows.index[1])}–{int(windows.index[1]) + count - 1} with {windows.iloc[1]:.3f} π"
    return Plan(({"drop": chosen},), why=why + ".")


def over_all_tokens(paths: Paths, gap: int) -> pd.Series:
    """The angle over π between states `gap` blocks apart, mean over all tokens that count, by first block."""
    starts = range(paths.depth - gap + 1)
    total, count = torch.zeros(len(starts), dtype=torch.float64), 0
    for b, run in enumerate(paths.runs):
        tokens = [paths.stack.layout.tokens(state) for state in paths.states(paths.whole, b)]
        mask = run.batch.mask
        total += torch.stack([angle(tokens[k], tokens[k + gap])[mask].double().sum() for k in starts]).cpu()
        count += int(mask.sum())
    return pd.Series((total / count).numpy(), index=pd.Index(starts, name="block"))
