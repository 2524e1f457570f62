"""Rung 2: the new model computes what the plan says, block by block, and exact steps are exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from layerwright.core.inputs import real_tokens
from layerwright.core.rungs.answers import Preserved, apart, largest, mask_name, read_answer, scale
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.outcome import FAILED, MEASURED, PASSED, Outcome, not_run


def exactness(case: Case) -> Outcome:
    """Hold states and answers against the base's own blocks in the plan's order, answers against what was expected."""
    limit = f"{case.tolerance:g} × largest"
    wrong = _not_finite(case)
    found: dict[str, Any] = {}
    said: list[str] = []
    if wrong is None and case.copies and case.order is not None:
        wrong = _replayed(case, found, said)
    if wrong is None and case.expected is not None:
        wrong = _expected(case, found, said)
    if wrong is None and case.steps:
        wrong = _steps(case, found, said)
    if wrong is not None:
        return Outcome(FAILED, wrong, limit, found)
    if not said:
        return not_run("nothing says what the new model must compute: its blocks are not matched with the base's")
    held = "per_block" in found or "expected" in found or any(_must_hold(case, s) for s in case.steps)
    return Outcome(PASSED if held else MEASURED, "; ".join(said), limit if held else "", found)


def _not_finite(case: Case) -> str | None:
    base, new = (read_answer(p.output) for p in (case.base_pass, case.new_pass))
    if base.isfinite().all() and new.isnan().any():
        return "the new model answers NaN, and the base does not"
    return None


# Blocks in another order


def _replayed(case: Case, found: dict[str, Any], said: list[str]) -> str | None:
    """The base's blocks, called in the plan's order from its first state, make the states that the new tower makes."""
    base, new = case.base_pass, case.new_pass
    errors = found["per_block"] = [_states_apart(case, base.states[0], new.states[0])]
    if errors[0] > case.tolerance:
        return f"the stream differs before block 0, relative error {errors[0]:.2g}: what comes before the tower changed"
    state = base.states[0]
    for j, state in enumerate(_walk(case)):
        errors.append(_states_apart(case, state, new.states[j + 1]))
        if errors[-1] > case.tolerance:
            assert case.order is not None
            source = f"block {case.order[j]} of the base"
            return (
                f"{case.place(j)} does not do what {source} does: the stream is off by {errors[-1]:.2g} of its largest"
            )
    return _answers(case, read_answer(base.tail(state)), "replayed", found, said)


def _walk(case: Case) -> Iterator[Tensor]:
    """The states after each block of the plan's order."""
    assert case.order is not None
    state = case.base_pass.states[0]
    for k in case.order:
        state = case.base_pass.block(k, state)
        yield state


def _states_apart(case: Case, wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    layout = case.base.layout
    p, q = layout.tokens(wanted), layout.tokens(got).to(wanted.device)
    real = real_tokens(case.base_inputs, p, mask_name(case.inputs, case.base.causal))
    return largest(p[real].double(), q[real].double()) / scale(p[real])


def _answers(case: Case, wanted: Tensor, name: str, found: dict[str, Any], said: list[str]) -> str | None:
    got = apart(wanted, read_answer(case.new_pass.output), case.base_inputs)
    found[name] = {"max_error": got.error, "scale": got.scale, "top1": got.top1, "kl": got.kl}
    where = {"replayed": "the base's blocks in the plan's order", "expected": "what was expected"}[name]
    if got.relative > case.tolerance:
        after = "; every block is right, so that it is what follows the tower" if name == "replayed" else ""
        return f"answers are {got.error:.2g} off {where} (largest {got.scale:.3g}){after}"
    if got.top1 < 1.0 and case.tolerance <= _STRICT:
        return f"the likeliest class is another than by {where} at {1 - got.top1:.2%} of the tokens"
    said.append(f"answers are those of {where}, error {got.error:.1e}")
    return None


# In half precision neighbouring logits round to one value, so that the likeliest class says less than the error.
_STRICT = 1e-5


def _expected(case: Case, found: dict[str, Any], said: list[str]) -> str | None:
    wanted = case.expected(case.base_inputs) if callable(case.expected) else case.expected
    assert wanted is not None
    return _answers(case, read_answer(wanted), "expected", found, said)


# Steps


def _steps(case: Case, found: dict[str, Any], said: list[str]) -> str | None:
    found["steps"] = [asdict(step) | {"held": step.held} for step in case.steps]
    for number, step in enumerate(case.steps):
        if _must_hold(case, step) and not step.held:
            asked = (
                "declares itself exact"
                if step.declared == "exact"
                else f"is {step.declared} and the plan asks for exact"
            )
            return (
                f"step {number + 1} ({step.step}) {asked}: answers are {step.max_error:.2g} off, "
                f"{step.limit:.2g} allowed, "
                f"and the likeliest class is the same at {step.top1:.2%} of the tokens"
            )
    said += [f"{step.step} ({step.declared}) changes answers by {step.max_error:.1e}" for step in case.steps]
    return None


def _must_hold(case: Case, step: Preserved) -> bool:
    return step.declared == "exact" or step.step in case.requirements.get("exact", ())
