"""The ladder of checks after an edit: cheapest first, ends at the first failure, names the block that is to blame."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layerwright.core.data import load_data
from layerwright.core.errors import UserError
from layerwright.core.inputs import rows, short
from layerwright.core.load import load_model, read_json
from layerwright.core.plan import Plan
from layerwright.core.probe import probe_inputs
from layerwright.core.progress import Progress
from layerwright.core.registry import nearest
from layerwright.core.rungs.answers import Preserved as Preserved
from layerwright.core.rungs.answers import apart, read_answer
from layerwright.core.rungs.answers import preserved as preserved
from layerwright.core.rungs.case import Case as Case
from layerwright.core.rungs.control import control
from layerwright.core.rungs.decode import decode
from layerwright.core.rungs.drift import drift
from layerwright.core.rungs.exactness import exactness
from layerwright.core.rungs.ladder import Ladder, Rung
from layerwright.core.rungs.outcome import FAILED, NOT_RUN, Outcome, not_run
from layerwright.core.rungs.quality import check_tasks, quality
from layerwright.core.rungs.reload import reload
from layerwright.core.rungs.speed import speed
from layerwright.core.rungs.structure import structure
from layerwright.core.tied import imports_of

_CLIMB: Mapping[str, Callable[[Case], Outcome]] = {
    "structure": structure,
    "exactness": exactness,
    "decode": decode,
    "reload": reload,
    "drift": drift,
    "quality": quality,
    "speed": speed,
    "control": control,
}
RUNGS = tuple(_CLIMB)
# Entries of a plan's `verify:` section, and the rung that each asks for.
_ASKED_BY = {"exact": "exactness", "loss": "quality", "latency": "speed"} | {name: name for name in RUNGS}


def verify(case: Case, *, until: str = "reload", progress: Progress = lambda stage, done, total: None) -> Ladder:
    """Climb the ladder: each rung up to `until`, those that the plan asks for, and quality where there is text for it.

    Args:
        case: the two models, and what is known of the edit between them. Both are left as they were.
        until: name of the last rung to be climbed.
        progress: called with the rungs done and the rungs there are.

    Returns:
        the ladder; after a rung that failed, the others are `not run`.

    Raises:
        UserError: the models cannot be compared, or a requirement needs something that was not given.
    """
    wanted = _wanted(case, until)
    _check(case, wanted)
    rungs: list[Rung] = []
    failed = 0
    with case.quiet():
        for number, (name, climb) in enumerate(_CLIMB.items(), 1):
            progress("verify", number - 1, len(_CLIMB))
            if failed:
                outcome = not_run(f"rung {failed} failed")
            elif name not in wanted:
                outcome = not_run("not asked for")
            else:
                outcome = _required(case, name, climb(case))
            failed = number if outcome.verdict == FAILED else failed
            rungs.append(Rung(number, name, *outcome))
            if name == "structure" and not failed:
                # Two vocabularies are no fault of the edit: everything from here on would compare what does not belong.
                apart(read_answer(case.base_pass.output), read_answer(case.new_pass.output), case.base_inputs)
    progress("verify", len(_CLIMB), len(_CLIMB))
    return Ladder(tuple(rungs))


def _wanted(case: Case, until: str) -> set[str]:
    if until not in _CLIMB:
        raise UserError(
            f"unknown rung {until!r}; did you mean {nearest(until, _CLIMB)!r}? There are {', '.join(RUNGS)}"
        )
    given = ["quality"] if case.tasks or case.documents else []
    return {*RUNGS[: RUNGS.index(until) + 1], *_rungs_of(case.requirements), *given}


def _rungs_of(requirements: Mapping[str, Any]) -> set[str]:
    return {_ASKED_BY[name] for name in requirements if name in _ASKED_BY}


def _check(case: Case, wanted: set[str]) -> None:
    """Find out before anything runs that a requirement cannot be checked."""
    check_tasks(case)
    for name in sorted(wanted & _rungs_of(case.requirements)):
        if name in ("quality", "control") and not case.documents:
            raise UserError(f"the plan asks for {name}, which needs text; give some with --text")
    if "control" in _rungs_of(case.requirements) and case.control is None:
        raise UserError("the plan asks for control, and nobody makes random plans of the same budget here")
    if case.order is not None and not case.order:
        raise UserError("got an empty order; expected the source of each block")


def _required(case: Case, name: str, outcome: Outcome) -> Outcome:
    """What the plan asks for and cannot be told is not held."""
    if outcome.verdict != NOT_RUN or name not in _rungs_of(case.requirements):
        return outcome
    return Outcome(
        FAILED, f"the plan asks for it, and it cannot be told: {outcome.finding}", outcome.limit, outcome.numbers
    )


# Two folders


def verify_folders(
    before: str | Path,
    after: str | Path,
    data: Any = None,
    *,
    until: str = "drift",
    requirements: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    max_tokens: int | None = None,
    length: int | None = None,
    blocks: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Ladder:
    """Climb the ladder between two models that are saved.

    Where the new one has a `reshape.json` (written by `lw reshape`), its plan says which blocks belong together and
    what is required. Without one, no blocks are matched.

    Args:
        before: the base: a folder, a name on the hub, or `demo`.
        after: the new model's folder.
        data: what to measure the loss on, as in a survey; with None, the loss is measured only if `until` or a
            requirement says so, on the text that comes with the demo model.
        until: name of the last rung to be climbed.
        requirements: instead of those of the plan.
        tasks: tasks of lm-eval.
        max_tokens: how much of the data to use.
        length: tokens in a document.
        blocks: path of the tower of blocks, where the base has several.
        device: where to compute.
        dtype: what to compute in; the models' own unless given. In another, rung 4 has nothing to compare.
        seed: seeds everything random.
        progress: called with the rungs done and the rungs there are.

    Raises:
        UserError: a folder is missing or incomplete, or the models cannot be compared.
    """
    base, tokenizer, _ = load_model(before, dtype=dtype, device=device)
    new, its, about = load_model(after, dtype=dtype, device=device)
    tokenizer = tokenizer or its
    record = _record(Path(about["folder"]))
    asked = dict((record.plan.verify if record.plan else {}) if requirements is None else requirements)
    asked.pop("control", None)  # random plans are made where the plan is made
    text = data is not None or until in _ON_TEXT or not _ON_TEXT.isdisjoint(_rungs_of(asked))
    given = None
    if text or tokenizer is not None:
        few = None if text else _FEW_TOKENS
        given = load_data(data, base, tokenizer, length=length, max_tokens=max_tokens or few)
    case = Case(
        base,
        new,
        probe_inputs(base) if given is None else short(rows(given.batches[0], slice(0, 4)), 64),
        blocks=blocks,
        provenance=record.provenance,
        requirements=asked,
        folder=Path(about["folder"]) if dtype is None else None,
        imports=imports_of(new),
        documents=given.batches if given is not None and text else (),
        prefix=0 if given is None else given.prefix,
        tokenizer=tokenizer,
        tasks=tasks,
        seed=seed,
    )
    case.order, case.copies = record.order_for(case.base.depth)
    return verify(case, until=until, progress=progress)


_ON_TEXT = {"quality", "speed", "control"}
_FEW_TOKENS = 1024


class _Record(NamedTuple):
    """What `lw reshape` left beside the weights."""

    plan: Plan | None = None
    order: list[int] | None = None
    provenance: Mapping[str, Sequence[str]] | None = None

    def order_for(self, depth: int) -> tuple[Sequence[int] | None, bool]:
        """The source of each block in a base of so many, and whether the plan only chose blocks."""
        if self.order is not None and max(self.order) >= depth:
            raise UserError(
                f"reshape.json speaks of block {max(self.order)}, and the base has {depth} blocks; give the base that "
                "was reshaped"
            )
        try:
            return (self.order, False) if self.plan is None else (self.plan.order(depth), True)
        except UserError:  # the plan changes weights
            return self.order, False


def _record(folder: Path) -> _Record:
    file = folder / "reshape.json"
    if not file.is_file():
        return _Record()
    document = read_json(file)
    order, provenance, plan = (document.get(name) for name in ("order", "provenance", "plan"))
    if order is not None and not (isinstance(order, list) and order and all(type(k) is int and k >= 0 for k in order)):
        raise UserError(f"{file} has the order {order!r}; expected a list of blocks; reshape the model anew")
    if provenance is not None and not (
        isinstance(provenance, dict) and all(isinstance(sources, list) for sources in provenance.values())
    ):
        raise UserError(f"{file} has no provenance by tensor; reshape the model anew")
    return _Record(None if plan is None else Plan.from_yaml(json.dumps(plan)), order, provenance)
