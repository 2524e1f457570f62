"""`lw reshape` and `lw verify`: the model that a plan describes, and what changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from layerwright.cli.arguments import (
    Arrays,
    Blocks,
    Images,
    Json,
    Length,
    MaxTokens,
    Model,
    Remote,
    Seed,
    Settings,
    Text,
    check_writable,
    data_of,
    options_of,
    say,
)
from layerwright.core.errors import UserError

Until = Annotated[str, typer.Option("--verify", metavar="RUNG", help="Last rung of the ladder of checks, or none.")]
_HINT = "lw reshape MODEL PLAN.yaml --out DIR, or lw reshape MODEL --plan-with NAME --dry-run"


def reshape(
    model: Model,
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN.yaml]", help="What to do.")] = None,
    plan_with: Annotated[str | None, typer.Option(metavar="NAME", help="Let a planner propose the plan.")] = None,
    options: Settings = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the new model goes.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and change nothing.")] = False,
    until: Until = "reload",
    export: Annotated[str, typer.Option(metavar="plain|tied|remote", help="How shared weights are saved.")] = "plain",
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    blocks: Blocks = None,
    max_tokens: MaxTokens = None,
    length: Length = None,
    seed: Seed = 0,
    as_json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Make the model that a plan describes, and climb the ladder of checks. Exit code 1 where one fails."""
    if (plan is None) == (plan_with is None):
        raise UserError(f"expected a plan or the name of a planner, and not both: {_HINT}")
    if out is None and not dry_run:
        raise UserError(f"expected --out, the folder of the new model, or --dry-run: {_HINT}")
    if out is not None:
        check_writable(out)
    data = data_of(model, text, images, arrays)
    from layerwright import verbs
    from layerwright.core.plan import Plan
    from layerwright.core.tied import check_export

    common: dict[str, Any] = {
        "blocks": blocks, "max_tokens": max_tokens, "length": length, "seed": seed, "progress": sys.stderr.isatty(),
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if plan is not None:
        chosen = Plan.load(plan)
    else:
        assert plan_with is not None
        check_export(export)  # before the work, not after it
        chosen = verbs.propose(model, plan_with, data, options=options_of(options or [], plan_with), **common)
    if dry_run:
        print(json.dumps(chosen.to_dict()) if as_json else chosen.to_yaml(), end="\n" if as_json else "")
        return
    _, result = verbs.reshape(
        model,
        chosen,
        text or images or arrays or _needed(chosen, data),
        out=out,
        until=until,
        export=export,
        say=say,
        **common,
    )
    _report(result, as_json, plan_with is not None)
    if not result.ok:
        raise typer.Exit(1)


def verify(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="The base: a folder, a hub name, or `demo`.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The new model.")],
    until: Until = "drift",
    tasks: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Tasks of lm-eval.")] = None,
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    blocks: Blocks = None,
    max_tokens: MaxTokens = None,
    length: Length = None,
    device: Annotated[str, typer.Option(metavar="D", help="Where to compute.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(metavar="T", help="Of the weights; default the checkpoint's.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Climb the ladder of checks between two saved models. Exit code 1 where one fails."""
    from layerwright import verbs
    from layerwright.report import ladder

    found = verbs.verify(
        before, after, data_of("", text, images, arrays), until=until, tasks=tasks or [], blocks=blocks,
        max_tokens=max_tokens, length=length, device=device, dtype=dtype, seed=seed, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        ladder.show(found)
    if not found.ok:
        raise typer.Exit(1)


def _needed(plan: Any, data: str | None) -> str | None:
    """Data that nobody named is only read for what the plan requires."""
    return data if {"loss", "control"} & set(plan.verify) else None


def _report(result: Any, as_json: bool, proposed: bool) -> None:
    from layerwright.report import ladder

    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
        return
    if proposed:
        print(result.edit.plan.to_yaml())
    print(f"{len(result.edit.order)} blocks: {' '.join(map(str, result.edit.order))}")
    for note in result.edit.notes:
        print(f"note: {note}")
    if result.ladder is not None:
        print()
        ladder.show(result.ladder)
    print(f"\n{'saved in' if result.ok else 'not published: see'} {result.folder}")
