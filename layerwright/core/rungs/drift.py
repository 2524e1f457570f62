"""Rung 5: how far the stream and what can be read off it have moved from the base's, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from layerwright.core.inputs import real_tokens, rows
from layerwright.core.replay import Replay
from layerwright.core.rungs.answers import mask_name
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.outcome import FAILED, MEASURED, PASSED, Outcome, not_run
from layerwright.maths.entropy import kl_divergence
from layerwright.maths.similarity import cosine


def drift(case: Case) -> Outcome:
    """Compare the state after each block with the base's after the block that it takes after.

        cosine_j = mean_t cos(h'_{j+1}, h_{s(j)+1})        divergence_j = mean_t KL(lens(h_{s(j)+1}) ‖ lens'(h'_{j+1}))

    h, h' are the streams of the base and the new model, s(j) the source of block j, and lens, lens' what the rest of
    each model makes of a state. The lens breaks at the block after which the divergence rises most.
    """
    if case.order is None:
        return not_run("the new blocks are not matched with the base's, so that no states belong together")
    if case.base.width != case.new.width:
        return not_run(f"the streams are {case.base.width} and {case.new.width} wide, and do not compare")
    cosines = [_cosine(case, j, k) for j, k in enumerate(case.order)]
    numbers: dict[str, Any] = {"source": list(case.order), "cosine": cosines}
    said = [_turned(case, cosines)]
    divergences = list(_divergences(case)) if case.base.head is not None else []
    if divergences:
        rises = [b - a for a, b in zip([0.0, *divergences], divergences)]
        at = max(range(len(rises)), key=rises.__getitem__)
        numbers |= {"divergence": divergences, "breaks_at": at}
        breaks = f", rising most at {case.place(at)}" if rises[at] > 0 else ""
        said.append(f"lens {divergences[-1]:.3g} nat from the base's in the end{breaks}")
    else:
        said.append("no logits to read off")
    return _held(case, numbers, "; ".join(said))


def _turned(case: Case, cosines: list[float]) -> str:
    at = min(range(len(cosines)), key=cosines.__getitem__)
    return f"cosine with the base's stream {cosines[-1]:.3f} in the end, least {cosines[at]:.3f} at {case.place(at)}"


def _held(case: Case, numbers: dict[str, Any], said: str) -> Outcome:
    """The first block that is further off than the plan allows."""
    asked = case.requirements.get("drift", {})
    least, most = asked.get("min_cosine"), asked.get("max_divergence")
    if least is None and most is None:
        return Outcome(MEASURED, said, "", numbers)
    limits = [f"cosine ≥ {least:g}"] if least is not None else []
    limits += [f"divergence ≤ {most:g} nat"] if most is not None else []
    if most is not None and "divergence" not in numbers:
        return Outcome(FAILED, "the plan limits the divergence, and the model gives no logits", limits[-1], numbers)
    for j, value in enumerate(numbers["cosine"]):
        if least is not None and not value >= least:
            return Outcome(FAILED, f"the stream's cosine after {case.place(j)} is {value:.3f}", limits[0], numbers)
        if most is not None and not numbers["divergence"][j] <= most:
            what = f"the lens after {case.place(j)} is {numbers['divergence'][j]:.3g} nat from the base's"
            return Outcome(FAILED, what, limits[-1], numbers)
    return Outcome(PASSED, said, ", ".join(limits), numbers)


def _cosine(case: Case, j: int, k: int) -> float:
    layout = case.base.layout
    p, q = (layout.tokens(r.states[n + 1]) for r, n in ((case.base_pass, k), (case.new_pass, j)))
    real = real_tokens(case.base_inputs, p, mask_name(case.inputs, case.base.causal))
    return float(cosine(p[real], q.to(p.device)[real]).double().mean())


def _divergences(case: Case) -> Iterator[float]:
    """KL of the lens after each block; the base's state is decoded anew for each, as all would be large together."""
    assert case.order is not None
    for j, k in enumerate(case.order):
        total, count = 0.0, 0
        for few in case.new_pass.few_sequences():
            ours = few.to(case.base_pass.states[0].device)
            p, q = _lens(case.base_pass, k, ours), _lens(case.new_pass, j, few).to(ours.device)
            real = real_tokens(rows(case.base_inputs, ours), p, mask_name(case.inputs))
            divergence = kl_divergence(p[real], q[real])
            total, count = total + float(divergence.double().sum()), count + len(divergence)
        yield total / max(1, count)


def _lens(replay: Replay, k: int, few: Tensor) -> Tensor:
    return replay.logits(replay.states[k + 1], few)
