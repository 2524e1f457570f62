"""The verbs: thin functions that join the rooms. This is the whole public surface; nothing heavy is imported here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn

    from layerwright.core.plan import Plan
    from layerwright.core.reshape import Reshaped
    from layerwright.core.rungs.ladder import Ladder
    from layerwright.core.survey import Survey


def survey(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    tier: str = "standard",
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    blocks: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: str | None = None,
    max_tokens: int | None = None,
    length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    stream: str = "auto",
    jobs: str | int | None = None,
    against: str | Path | nn.Module | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Survey:
    """Measure how a model uses its depth.

    Args:
        model: a live module, a local folder, a hub name, or `demo`. With a module that DDP or `fully_shard` wrapped,
            every rank calls this with the same arguments: they share the data, all get the result, rank 0 saves it.
        data: text file or folder, `.jsonl`, `.npz`, folder of images, tensors, a DataLoader, a Hugging Face dataset, or
            None for the text that comes with the demo model.
        tier: `quick` (one forward pass), `standard` (skips, gradients, weights) or `deep`.
        only: measures to compute, instead of the tier's.
        skip: measures to leave out.
        blocks: path of the tower of blocks, where the model has several.
        options: keyword options by measure.
        tokenizer: for text data with a live module.
        device: where to compute.
        dtype: what to compute in; the model's own by default.
        max_tokens: how much of the data to use.
        length: tokens in a sequence.
        seed: seeds everything random.
        trust_remote_code: run code that comes with the model.
        stream: take the model block by block, with one block's weights in memory: `always`, `never`, or `auto` where it
            would not fit.
        jobs: measure in independent jobs of a few sequences, each on one thread: `serial`, a number of local workers,
            `auto` (one a core), `ray` or `ray://HOST:PORT`. The numbers are the same, bit for bit, wherever jobs run.
        against: another model to survey on the same data; `result.against` is its survey, `result.comparison` both.
        out: folder to save the result in. A survey block by block, or by jobs, that was stopped goes on from there.
        progress: show progress bars.
        say: called with a line that a user should read before the work is done, as the budget of a walk.

    Returns:
        the tables, findings, self-tests and notes.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright import __version__, measures
    from layerwright.core import engine
    from layerwright.core.ranks import Ranks
    from layerwright.core.registry import choose

    del measures  # importing the package registers every measure
    start = time.perf_counter()
    chosen = choose(tier, only, skip)
    options = _checked(options or {}, chosen)
    leads = Ranks.of(model).leads and Ranks.of(against).leads
    folder = Path(out) if out is not None and leads else None
    with _bars(progress and leads) as bars:
        request = engine.Request(
            model, data, chosen, options, blocks, tokenizer, device, dtype, max_tokens, length, seed, trust_remote_code,
            stream, None if jobs is None else str(jobs), folder, bars, say,
        )  # fmt: skip
        requests = {"model": request} | ({} if against is None else {"against": request.of(against)})
        found = engine.answers(requests)
    settings = {
        "tier": tier,
        "measures": [m.name for m in chosen],
        "options": {name: dict(o) for name, o in options.items()},
        "seed": seed,
        "layerwright": __version__,
        "seconds": round(time.perf_counter() - start, 2),
    }
    result = _surveyed(found["model"], settings)
    if against is not None:
        result.against = _surveyed(found["against"], settings)
    if folder is not None:
        result.save(folder)
        engine.tidy(folder)
    return result


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
    from layerwright.core.errors import UserError
    from layerwright.core.load import load_model

    if (plan is None) == (plan_with is None):
        raise UserError("expected a plan, or the name of a planner (--plan-with), and not both")
    with _bars(progress) as bars:
        if plan_with is not None:
            chosen = propose(
                model, plan_with, data, options=options, blocks=blocks, tokenizer=tokenizer, max_tokens=max_tokens,
                length=length, seed=seed, trust_remote_code=trust_remote_code,
            )  # fmt: skip
        else:
            chosen = _loaded(plan)
        place = None if out is None else Path(out)
        wish = reshaping.Wish(
            chosen, data, place, until, blocks, tokenizer, max_tokens, length, seed, bars, say
        )  # fmt: skip
        if isinstance(model, (str, Path)) and out is not None:
            return None, reshaping.reshape_stored(model, wish, trust_remote_code=trust_remote_code)
        module, its, about = load_model(model, trust_remote_code=trust_remote_code)
        return reshaping.reshape_live(module, replace(wish, tokenizer=tokenizer or its), about["name"])


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
    from layerwright.core.base import stored_fingerprint
    from layerwright.core.data import load_data
    from layerwright.core.load import load_model
    from layerwright.core.planner import find_planner, plan_with
    from layerwright.core.shards import Checkpoint
    from layerwright.core.stack import Stack

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
    folder = about["folder"]
    sha256 = "" if folder is None else stored_fingerprint(Checkpoint.open(Path(folder)))
    with _bars(progress) as bars:
        plan = plan_with(
            planner, Stack.find(module, given.batches[0], blocks), tables=tables, batches=given.batches,
            prefix=given.prefix, options=options.get(planner), base=about["name"], seed=seed,
            jobs="serial" if jobs is None else str(jobs), keep=keep, progress=bars,
        )  # fmt: skip
    return replace(plan, sha256=sha256)


def verify(
    before: str | Path,
    after: str | Path,
    data: Any = None,
    *,
    until: str = "drift",
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

    with _bars(progress) as bars:
        return verify_folders(
            before, after, data, until=until, max_tokens=max_tokens, length=length, blocks=blocks, device=device,
            dtype=dtype, seed=seed, progress=bars,
        )  # fmt: skip


def _loaded(plan: Any) -> Plan:
    from layerwright.core.plan import Plan

    return plan if isinstance(plan, Plan) else Plan.load(plan)


def _surveyed(answer: Any, settings: Mapping[str, Any]) -> Survey:
    """What an engine found, with findings and notes."""
    from layerwright.core.survey import Survey
    from layerwright.findings import find

    stack, given, info, recording = answer
    data = given.to_dict() | {"sequences": recording.sequences, "tokens": recording.tokens}
    notes = [*given.notes, *_other_towers(stack), *recording.notes]
    result = Survey(_about(stack, info), data, dict(settings), recording.tables, [], recording.checks, notes)
    result.findings = find(result)
    return result


def claims(
    names: Iterable[str] = (),
    *,
    all: bool = False,
    budget: str = "small",
    out: str | Path | None = None,
    seeds: int | None = None,
    progress: bool = False,
) -> DataFrame:
    """List what papers claim with the verdicts recorded here, or run the experiments again.

    Args:
        names: claims to run; with none, and without `all`, the recorded verdicts are listed.
        all: run every claim.
        budget: `small` (minutes for all) or `full`.
        out: folder for `claims.json`, `claims.html` and the result of every trial; a run that was stopped goes on from
            those.
        seeds: trials of each claim, instead of the budget's own number.
        progress: show progress bars.

    Returns:
        one row a claim: verdict (`holds`, `fails`, `inconclusive`, `not run`), paper, budget, seeds, date, version and
        the command that gets it again. `attrs["records"]` holds everything: numbers, intervals, conditions, figure.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright.claims import ledger

    if not all and not (names := [names] if isinstance(names, str) else list(names)):
        return ledger.frame(ledger.recorded())
    folder = None if out is None else Path(out)
    return ledger.frame(ledger.run(names, all_of_them=all, budget=budget, seeds=seeds, out=folder, progress=progress))


def _other_towers(stack: Any) -> list[str]:
    """Say that there was a choice of towers; towers inside a block of the chosen one are its own affair."""
    inside = tuple(path + "." for path in stack.tower.block_paths)
    others = [
        t for t in stack.towers
        if t.surveyable and t is not stack.tower and not t.block_paths[0].startswith(inside)
        and not any(path.startswith(t.block_paths[0] + ".") for path in stack.tower.block_paths)
    ]  # fmt: skip
    if not others:
        return []
    listed = ", ".join(t.describe() for t in others[:4])
    return [f"surveyed {stack.tower.describe()}; other towers: {listed}; choose with --blocks PATH"]


def _about(stack: Any, info: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the model."""
    parameter = next(stack.model.parameters(), None)
    good = [t for t in stack.towers if t.surveyable]
    return dict(info) | {
        "class": type(stack.model).__name__,
        "blocks": stack.tower.path,
        "block_class": stack.tower.block_class,
        "depth": stack.depth,
        "unique_depth": len(stack.blocks),
        "width": stack.width,
        "parameters": sum(p.numel() for p in stack.model.parameters()),
        "dtype": "none" if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "device": "none" if parameter is None else str(parameter.device),
        "order": list(stack.order),
        "causal": stack.causal,
        "parts": [{"name": s.role, "path": s.path, "parallel": s.parallel} for s in stack.parts[0]],
        "towers": [{"path": t.path, "depth": t.depth, "block_class": t.block_class} for t in good],
    }


def _checked(options: Mapping[str, Mapping[str, Any]], chosen: list[Any]) -> Mapping[str, Mapping[str, Any]]:
    from layerwright.core.errors import UserError
    from layerwright.core.registry import find, nearest

    for name, given in options.items():
        known = find(name).options
        for option in given:
            if option not in known:
                hint = f"did you mean {nearest(option, known)!r}?" if known else "it has none"
                raise UserError(f"measure {name!r} has no option {option!r}; {hint}")
    return {m.name: options[m.name] for m in chosen if m.name in options}


def _bars(show: bool) -> Any:
    from layerwright.core.progress import bars

    return bars(show)
