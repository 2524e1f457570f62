"""`reshape`, `propose` and `verify`: the model that a plan describes, the plan, and what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwright.core.progress import bars

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn

    from layerwright.core.plan import Plan
    from layerwright.core.reshape import Reshaped
    from layerwright.core.rungs.ladder import Ladder


def reshape(
    model: str | Path | nn.Module,
    plan: Plan | str | Path | None = None,
    data: Any = None,
    *,
    plan_with: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    until: str = "reload",
    blocks: str | None = None,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    length: int | None = None,
    seed: int = 0,
    export: str = "plain",
    trust_remote_code: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module | None, Reshaped]:
    """Make the model that a plan describes, and check what changed.

    Args:
        model: a live module, which is left as it is, a local folder, a hub name, or `demo`.
        plan: what to do, or a file with it.
        data: text or the like, as in a survey, to measure the loss on; None leaves quality out.
        plan_with: a planner that proposes the plan instead.
        options: keyword options of the planner by its name, and of the measures it reads.
        out: folder to save the result in. A checkpoint is written there without being loaded, where the plan allows.
        until: the last rung of the ladder to climb (`lw explain verify`), or `none` for no check.
        blocks: path of the tower of blocks, where the model has several.
        tokenizer: for text data with a live module.
        max_tokens: how much of the data to use.
        length: tokens in a sequence.
        seed: seeds everything random.
        export: `plain` writes a folder that transformers loads, `tied` a weight that blocks share once, for which
            transformers needs `import layerwright.core.tied`, `remote` the same with a Python file that says how, for
            which it needs `trust_remote_code=True`: who says so runs that file.
        trust_remote_code: run code that comes with the model.
        progress: show progress bars.
        say: called with a line that a user should read.

    Returns:
        the new model, or None where it was written to `out` from a checkpoint, and what was done and checked:
        `report.ladder`, `report.edit`, `report.folder`.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright.core import reshape as reshaping
    from layerwright.core.climb import Wish
    from layerwright.core.errors import UserError
    from layerwright.core.load import load_model
    from layerwright.core.tied import check_export

    check_export(export)
    if (plan is None) == (plan_with is None):
        raise UserError("expected a plan, or the name of a planner (--plan-with), and not both")
    with bars(progress) as shown:
        if plan_with is not None:
            chosen = propose(
                model, plan_with, data, options=options, blocks=blocks, tokenizer=tokenizer, max_tokens=max_tokens,
                length=length, seed=seed, trust_remote_code=trust_remote_code,
            )  # fmt: skip
        else:
            chosen = _loaded(plan)
        place = None if out is None else Path(out)
        wish = Wish(
            chosen, data, place, until, blocks, tokenizer, max_tokens, length, seed, export, shown, say
        )  # fmt: skip
        if isinstance(model, (str, Path)) and out is not None:
            return None, reshaping.reshape_stored(model, wish, trust_remote_code=trust_remote_code)
        module, its, about = load_model(model, trust_remote_code=trust_remote_code)
        stored = _fingerprint(about["folder"])
        return reshaping.reshape_live(module, replace(wish, tokenizer=tokenizer or its), about["name"], stored)


def propose(
    model: str | Path | nn.Module,
    planner: str,
    data: Any = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    blocks: str | None = None,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    length: int | None = None,
    seed: int = 0,
    jobs: str | int | None = None,
    trust_remote_code: bool = False,
    keep: Callable[[str, DataFrame], None] = lambda name, frame: None,
    progress: bool = False,
) -> Plan:
    """The plan that a planner proposes for a model; nothing is changed.

    Args:
        model: a live module, a local folder, a hub name, or `demo`.
        planner: its name, as in `lw list planners`.
        data: what to measure on, as in a survey.
        options: keyword options of the planner by its name, and of the measures it reads by theirs.
        blocks: path of the tower of blocks, where the model has several.
        tokenizer: for text data with a live module.
        max_tokens: how much of the data to use.
        length: tokens in a sequence.
        seed: seeds everything random.
        jobs: where independent jobs run, as in a survey.
        trust_remote_code: run code that comes with the model.
        keep: called with the name and the table of all that was tried, where a planner has one.
        progress: show progress bars.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright import edits
    from layerwright.core.data import load_data
    from layerwright.core.load import load_model
    from layerwright.core.planner import find_planner, plan_with
    from layerwright.core.stack import Stack
    from layerwright.verbs.measuring import survey

    del edits  # importing the package registers every planner
    chosen = find_planner(planner)
    options = options or {}
    module, its, about = load_model(model, trust_remote_code=trust_remote_code)
    given = load_data(data, module, tokenizer or its, length=length, max_tokens=max_tokens)
    tables = {}
    if chosen.measures:
        found = survey(
            module, data, only=chosen.measures, blocks=blocks, tokenizer=tokenizer or its, max_tokens=max_tokens,
            length=length, seed=seed, progress=progress, options={k: v for k, v in options.items() if k != planner},
        )  # fmt: skip
        tables = found.tables
    with bars(progress) as shown:
        plan = plan_with(
            planner, Stack.find(module, given.batches[0], blocks), tables=tables, batches=given.batches,
            prefix=given.prefix, options=options.get(planner), base=about["name"], seed=seed,
            jobs="serial" if jobs is None else str(jobs), keep=keep, progress=shown,
        )  # fmt: skip
    return replace(plan, sha256=_fingerprint(about["folder"]))


def _fingerprint(folder: str | Path | None) -> str:
    """That of the files of a model; nothing for a live one."""
    from layerwright.core.base import stored_fingerprint
    from layerwright.core.shards import Checkpoint

    return "" if folder is None else stored_fingerprint(Checkpoint.open(Path(folder)))


def verify(
    before: str | Path,
    after: str | Path,
    data: Any = None,
    *,
    until: str = "drift",
    tasks: Sequence[str] = (),
    max_tokens: int | None = None,
    length: int | None = None,
    blocks: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Ladder:
    """Climb the ladder of checks between two saved models: structure, exactness, decoding, reloading, drift and so on.

    Args:
        before: the base: a local folder, a hub name, or `demo`.
        after: the folder of the new model; its `reshape.json` says which blocks belong together.
        data: text or the like, as in a survey, to measure the loss on.
        until: the last rung to climb.
        tasks: tasks of lm-eval that both models do (`pip install layerwright[eval]`).
        max_tokens: how much of the data to use.
        length: tokens in a document.
        blocks: path of the tower of blocks, where the base has several.
        device: where to compute.
        dtype: what to compute in.
        seed: seeds everything random.
        progress: show progress bars.

    Returns:
        the ladder: `ladder.ok`, `ladder.rungs`.

    Raises:
        UserError: a folder is missing or incomplete, or the models cannot be compared.
    """
    from layerwright.core.verify import verify_folders

    with bars(progress) as shown:
        return verify_folders(
            before, after, data, until=until, tasks=tasks, max_tokens=max_tokens, length=length, blocks=blocks,
            device=device, dtype=dtype, seed=seed, progress=shown,
        )  # fmt: skip


def _loaded(plan: Any) -> Plan:
    from layerwright.core.plan import Plan

    return plan if isinstance(plan, Plan) else Plan.load(plan)
