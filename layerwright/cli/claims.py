"""`lw claims`: what papers claim, tested."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from layerwright.cli.arguments import check_writable
from layerwright.core.errors import UserError

app = typer.Typer(help="What papers claim, tested: list the recorded verdicts, or run the experiments.")


class Budget(StrEnum):
    """How large an experiment."""

    small = "small"
    full = "full"


@app.callback(invoke_without_command=True)
def _claims(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_claims()


@app.command("run")
def run_claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Which claims.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every claim.")] = False,
    budget: Annotated[Budget, typer.Option(help="How large an experiment.")] = Budget.small,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Trials of each; default the budget's own.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where claims.json and the page go.")] = Path("claims"),
) -> None:
    """Run the experiments behind claims; run again, it goes on from what is there. Exit code 1 where a claim fails."""
    if bool(names) == everything:
        raise UserError("name the claims to run, or give --all; `lw claims` lists them")
    check_writable(out)
    from layerwright import verbs
    from layerwright.report import terminal

    progress = sys.stderr.isatty()
    verdicts = verbs.claims(names or [], all=everything, budget=budget.value, seeds=seeds, out=out, progress=progress)
    terminal.claims(verdicts, folder=out)
    if "fails" in set(verdicts["verdict"]):
        raise typer.Exit(1)


def list_claims() -> None:
    """Print the recorded verdicts."""
    from layerwright import verbs
    from layerwright.report import terminal

    terminal.claims(verbs.claims())
