"""Grow a model in depth by stacking it on itself."""

from __future__ import annotations

from math import log10

from layerwright.core.errors import UserError
from layerwright.core.plan import Plan
from layerwright.core.planner import planner
from layerwright.core.steps.choice import number, whole

# Tokens for every parameter where no number is planned, as in compute-optimal training.
_TOKENS_PER_PARAMETER = 20


def growth_timing(parameters: float, tokens: float) -> float:
    """Tokens to train the small model on before it is stacked.

        log10 d = 0.88·log10 N + 163.27 / log10 C − 5.74,   C = 6·N·D

    Args:
        parameters: N, of the model after it has grown.
        tokens: D, on which the grown model is to be as good as if trained on them from scratch.

    Returns:
        d, in tokens.

    Example:
        >>> round(growth_timing(7e9, 2e12) / 1e9, 2)
        11.11

    Reference: arXiv 2405.15319; fitted there to models from some hundred million parameters on.
    """
    compute = 6 * parameters * tokens
    return float(10 ** (0.88 * log10(parameters) + 163.27 / log10(compute) - 5.74))


@planner(paper="2405.15319")
def stack_grow(
    parameters: int, block_parameters: int, depth: int, *, times: int = 4, tokens: float | None = None,
    trained: float | None = None,
) -> Plan:  # fmt: skip
    """Put copies of the whole tower on top of it, then train on; says whether it is the time.

    Block l of the result is block l mod L. Embeddings, final norm and head are copied. The small model should have seen

        log10 d = 0.88·log10 N + 163.27 / log10 C − 5.74,   C = 6·N·D

    tokens d, with N the parameters after growth; the published factor is 4. The result is another function than the
    small model until it is trained, with a new state of the optimizer.

    Args:
        parameters: of the model.
        block_parameters: of its blocks, which are what grows.
        depth: L.
        times: growth factor.
        tokens: D, the training tokens planned for the grown model; 20 a parameter unless given.
        trained: tokens that the small model has seen.

    Returns:
        a plan with one `stack` step.

    Raises:
        UserError: a factor below 2, or numbers of tokens that are not positive.

    Example:
        >>> stack_grow(2_000_000_000, 1_666_666_667, 6, tokens=2e12, trained=11e9).steps
        ({'stack': {'times': 4}},)

    Reference: arXiv 2405.15319.
    """
    factor = whole(times, "times", 2)
    grown = parameters + (factor - 1) * block_parameters
    planned = _TOKENS_PER_PARAMETER * grown if tokens is None else number(tokens, "tokens")
    due = growth_timing(grown, planned)
    why = (
        f"Stacking {factor} times gives {depth * factor} blocks and {_short(grown)} parameters, of which only the "
        f"{_short(parameters)} of the small model are trained until then; for {_short(planned)} tokens in all the "
        f"guideline is to grow after {_short(due)}"
    )
    return Plan(({"stack": {"times": factor}},), why=why + _when(due, planned, trained))


def _when(due: float, planned: float, trained: float | None) -> str:
    """Whether the time has come."""
    if due >= planned:
        return ", more than are planned: it was fitted to much larger models and says nothing here."
    if trained is None:
        return "; give `trained`, the tokens that the small model has seen, to see whether it is the time."
    seen = number(trained, "trained")
    if seen > planned:
        raise UserError(f"got trained {_short(seen)} and {_short(planned)} tokens in all; expected fewer than in all")
    advice = "train it longer first" if seen < 0.5 * due else "the time has come" if seen < 2 * due else "it is late"
    return f"; the small model has seen {_short(seen)}: {advice}."


def _short(n: float) -> str:
    """1.2M, 11.1B.

    Example:
        >>> _short(11_110_000_000), _short(950)
        ('11.1B', '950')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"
