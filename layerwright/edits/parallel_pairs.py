"""Run neighbouring blocks side by side where the one hardly needs what the other adds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from layerwright.core.base_pass import BasePass
from layerwright.core.errors import UserError
from layerwright.core.paths import Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import Keep, planner
from layerwright.core.steps.choice import number
from layerwright.core.sublayers import Sublayer
from layerwright.core.table import table
from layerwright.maths.similarity import relative_norm


@planner(paper="2309.08414", tier="standard")
def parallel_pairs(paths: Paths, keep: Keep, *, share: float = 0.1) -> Plan:
    """Run neighbouring blocks in pairs side by side where that hardly changes the stream.

    Of two blocks with parts A and M (attention and feed-forward), each part of both reads the same stream,

        h ← h + A_1(h) + A_2(h),   h ← h + M_1(h) + M_2(h)

    which leaves out the second order of their composition, f_2(h + f_1(h)) − f_2(h). What is measured is the relative
    error of the stream after the pair, against both in sequence, mean over tokens. As many pairs as possible are chosen
    whose error is at most `share`, of those the ones with the least sum. One width serves the whole tower: a block that
    stays alone gets a silent block beside it. Each pair is measured alone, so that the errors of several add up.

    Args:
        paths: the model on the data.
        keep: gets the table of all pairs, as `parallel_pairs`.
        share: the largest relative error of a pair.

    Returns:
        a plan with a `parallel` step, before it an `insert` step where blocks stay alone. The table holds by first
        block the relative error of the stream, and the second-order share: the error over what the pair adds.

    Raises:
        UserError: no pair is below `share`; the least is named.

    Example:
        >>> from layerwright.core.stack import Stack
        >>> model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 2))
        >>> _ = [nn.init.eye_(m.weight) for m in model[:4]]  # each block adds a constant
        >>> inputs = {"input": torch.randn(8, 4)}
        >>> with Paths(Stack.find(model, inputs), [inputs]) as paths:
        ...     parallel_pairs(paths, lambda name, frame: None).steps
        ({'parallel': {'groups': 2}},)

    Reference: arXiv 2309.08414.
    """
    most = number(share, "share")
    frame = _table(paths)
    keep("parallel_pairs", frame)
    errors = frame["value"].tolist()
    firsts = disjoint(errors, most)
    if not firsts:
        k = frame["value"].idxmin()
        raise UserError(
            f"no two neighbouring blocks can run side by side with a relative error of at most {most:g}; the least is "
            f"{frame['value'][k]:.3f}, of blocks {k} and {k + 1}; give a larger `share`"
        )
    alone = [k for k in range(paths.depth) if k not in firsts and k - 1 not in firsts]
    steps: list[dict[str, Any]] = [{"insert": {"after": alone}}] if alone else []
    pairs = ", ".join(f"{k} and {k + 1}" for k in firsts)
    why = (
        f"Run side by side, each of the pairs {pairs} changes the stream by at most "
        f"{max(errors[k] for k in firsts):.3f} of its length (mean over tokens; all {len(errors)} pairs of neighbours: "
        f"{min(errors):.3f} to {max(errors):.3f}), so that {paths.depth} blocks become "
        f"{paths.depth - len(firsts)} steps."
    )
    return Plan((*steps, {"parallel": {"groups": 2}}), why=why)


def disjoint(errors: list[float], most: float) -> list[int]:
    """First blocks of as many disjoint pairs of neighbours as possible, of those the ones whose errors add up to least.

    Example:
        >>> disjoint([0.1, 0.0, 0.1, 0.9], 0.5), disjoint([0.1, 0.0, 0.3], 0.05)
        ([0, 2], [1])
    """
    # By number of blocks: how many pairs, minus the sum of their errors, and which.
    best: list[tuple[int, float, list[int]]] = [(0, 0.0, [])] * 2
    for k, error in enumerate(errors):
        count, total, firsts = best[k]
        with_pair = (count + 1, total - error, [*firsts, k])
        best.append(max(best[k + 1], with_pair, key=lambda b: b[:2]) if error <= most else best[k + 1])
    return best[-1][2]


def _table(paths: Paths) -> pd.DataFrame:
    pairs = range(paths.depth - 1)
    total, count = torch.zeros(2, len(pairs), dtype=torch.float64), 0
    for b, run in enumerate(paths.runs):
        states = paths.states(paths.whole, b)
        for k in pairs:
            paths.progress("pairs", b * len(pairs) + k + 1, len(pairs) * len(paths.runs))
            beside, before, after = (
                paths.stack.layout.tokens(x) for x in (side_by_side(run, k, states[k]), states[k], states[k + 2])
            )
            for n, reference in enumerate((after, after - before)):
                total[n, k] += relative_norm(beside - after, reference)[run.batch.mask].double().sum().cpu()
        count += int(run.batch.mask.sum())
    error, order = (total / count).numpy()
    meta = {
        "name": "parallel_pairs",
        "title": "Change of the stream when a block and the next run side by side",
        "unit": "1",
        "definition": "‖h_parallel − h_sequence‖ / ‖h_sequence‖, mean over tokens; `share` is over what the pair adds.",
    }
    return table(["block"], [(k,) for k in pairs], {"value": error, "share": order}, meta)


def side_by_side(run: BasePass, k: int, state: Tensor) -> Tensor:
    """The state after block applications k and k+1 when each part of both reads the same stream.

    Args:
        run: the unchanged pass over a batch.
        k: the first of the two.
        state: the state before it.
    """
    first, second = run.stack.parts[k], run.stack.parts[k + 1]
    if len(first) != len(second) or any(part.parallel for part in (*first, *second)) or not first:
        return run.replay.block(k, state) + run.replay.block(k + 1, state) - state
    for n in range(len(first)):
        state = state + _part(run, k, n, state) + _part(run, k + 1, n, state)
    return state


def _part(run: BasePass, k: int, n: int, state: Tensor) -> Tensor:
    """What the n-th part of application k adds to a state: the parts before it are made to add nothing."""
    parts, block = run.stack.parts[k], run.stack.blocks[run.stack.order[k]]
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for m, part in enumerate(parts[: n + 1]):
            act = found.append if m == n else None
            handle = block.get_submodule(part.path).register_forward_hook(_hook(part, act))
            hooks.callback(handle.remove)
        run.replay.call(k, state)
    return (found[0] * parts[n].scale).view_as(state)


def _hook(part: Sublayer, act: Callable[[Tensor], None] | None) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that notes the output of one call of a module, or makes it zero."""
    calls = 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != part.call:
            return None
        raw = output if isinstance(output, Tensor) else output[0]
        if act is not None:
            return act(raw)
        silent = torch.zeros_like(raw)
        return silent if isinstance(output, Tensor) else (silent, *output[1:])

    return hook
