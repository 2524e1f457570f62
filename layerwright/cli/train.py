"""`lw train`: training on, after an edit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from layerwright.cli.arguments import Arrays, Json, Length, Model, Remote, Text, check_writable, data_of


def train(
    model: Model,
    steps: Annotated[int, typer.Option(metavar="N", help="Updates of the weights.")],
    text: Text = None,
    arrays: Arrays = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the trained model goes.")] = None,
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate at its peak.")] = 3e-4,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences in one pass.")] = 16,
    length: Length = None,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Passes for one update.")] = 1,
    warmup: Annotated[int | None, typer.Option(metavar="N", help="Steps until the peak.")] = None,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Of matrices.")] = 0.1,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="To learn from beside the text.")] = None,
    alpha: Annotated[float, typer.Option(metavar="X", help="Weight of the teacher.")] = 0.5,
    temperature: Annotated[float, typer.Option(metavar="X", help="Of the comparison with it.")] = 1.0,
    every: Annotated[int | None, typer.Option(metavar="N", help="Steps between held-out losses.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the data, and of dropout.")] = 0,
    device: Annotated[str, typer.Option(metavar="D", help="Where to compute.")] = "cpu",
    dtype: Annotated[str, typer.Option(metavar="T", help="Of products of matrices.")] = "auto",
    as_json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Train MODEL on, on text; run again with the same --out, it goes on where it was stopped."""
    if out is not None:
        check_writable(out)
    data = data_of(model, text, arrays)
    from layerwright import verbs

    found = verbs.train(
        model, data, steps=steps, lr=lr, batch=batch, length=length, accumulate=accumulate, warmup=warmup,
        weight_decay=weight_decay, seed=seed, dtype=dtype, teacher=teacher, alpha=alpha, temperature=temperature,
        every=every, out=out, device=device, trust_remote_code=trust_remote_code, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        from layerwright.report import trained

        trained.show(found, folder=out)
