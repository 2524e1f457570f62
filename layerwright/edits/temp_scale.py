"""Sharpen attention by one temperature, so that long texts keep more of what tells their tokens apart."""

from __future__ import annotations

import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.plan import Plan
from layerwright.core.planner import planner
from layerwright.core.steps.choice import number


@planner(paper="2410.24200", tier="standard")
def temp_scale(attention_filter: pd.DataFrame, *, temperature: float = 0.9) -> Plan:
    """Divide the scores of all attention by one temperature τ below 1.

    In every block

        softmax(q·k / √d) → softmax(q·k / (τ √d))

    folded into the weights that make the queries. Sharper attention averages over fewer tokens, so that more of the
    differences between them gets through; the longer a text the less does, and long texts end up alike. The paper takes
    one τ for all blocks of an embedding model, without training. What τ does to the gains tells `attention_filter` with
    its option `temperature`, and a survey of the model made.

    Args:
        attention_filter: the measure: gains of every head, by length.
        temperature: τ, above 0 and below 1.

    Returns:
        a plan with one `fold` step.

    Raises:
        UserError: τ is not between 0 and 1.

    Example:
        >>> rows = [(0, 0, 0, "mean", 0.3), (0, 0, 0, "largest", 0.9)]
        >>> plan = temp_scale(pd.DataFrame(rows, columns=["block", "head", "length", "quantity", "value"]))
        >>> plan.steps
        ({'fold': {'temperature': 0.9}},)

    Reference: arXiv 2410.24200.
    """
    tau = number(temperature, "temperature")
    if tau >= 1:
        raise UserError(f"got temperature {temperature!r}; expected a number below 1, at which attention is sharper")
    heads = len(attention_filter[["block", "head"]].drop_duplicates())
    gains = attention_filter.groupby(["quantity", "length"])["value"].mean()
    by_length = gains["mean"]
    why = (
        f"Attention lets {by_length[0]:.3g} of random differences between tokens through (mean over {heads} heads) "
        f"and {gains['largest', 0]:.3g} of those that it lets through best (σ_a)"
    )
    lengths = [n for n in by_length.index if n > 0]
    if len(lengths) > 1:
        first, last = by_length[lengths[0]], by_length[lengths[-1]]
        fall = "less of longer texts" if last < first else "no less of longer texts, so that little is to be won"
        why += f"; {first:.3g} among {lengths[0]} tokens and {last:.3g} among {lengths[-1]}: {fall}"
    return Plan(({"fold": {"temperature": tau}},), why=f"{why}. τ = {tau:g} sharpens the attention of every block.")
