"""`lw survey`: what each block of a model does."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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


class Tier(StrEnum):
    """How much to compute."""

    quick = "quick"
    standard = "standard"
    deep = "deep"


class Stream(StrEnum):
    """Whether a model is taken block by block, for one larger than memory."""

    auto = "auto"
    always = "always"
    never = "never"


def survey(
    model: Model,
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    blocks: Blocks = None,
    tier: Annotated[Tier, typer.Option(help="How much to compute.")] = Tier.standard,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Just these measures.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Not these measures.")] = None,
    options: Settings = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL2", help="Another model, on the same data.")] = None,
    against_text: Annotated[
        str | None, typer.Option(metavar="FILE|DIR", help="Other text, for the same model or the other.")
    ] = None,
    theory: Annotated[bool, typer.Option("--theory", help="What theory predicts, beside what is measured.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write survey.json, tables and report.html.")] = None,
    device: Annotated[str, typer.Option(metavar="D", help="Where to compute.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(metavar="T", help="Of the weights; default the checkpoint's.")] = None,
    max_tokens: MaxTokens = None,
    length: Length = None,
    seed: Seed = 0,
    stream: Annotated[Stream, typer.Option(help="Block by block; auto: where it would not fit.")] = Stream.auto,
    jobs: Annotated[str | None, typer.Option(metavar="N|ray", help="Local workers, or a Ray cluster.")] = None,
    as_json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Measure what each block of MODEL does, and say what stands out."""
    data = data_of(model, text, images, arrays)
    settings = options_of(options or [])
    if out is not None:
        check_writable(out)
    from layerwright import verbs

    result = verbs.survey(
        model,
        data,
        tier=tier.value,
        only=only or [],
        skip=skip or [],
        blocks=blocks,
        options=settings,
        device=device,
        dtype=dtype,
        max_tokens=max_tokens,
        length=length,
        seed=seed,
        trust_remote_code=trust_remote_code,
        stream=stream.value,
        jobs=jobs,
        against=against,
        against_data=against_text,
        theory=theory,
        out=out,
        progress=sys.stderr.isatty(),
        say=say,
    )
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
    else:
        from layerwright.report import terminal

        terminal.show(result, folder=out)
