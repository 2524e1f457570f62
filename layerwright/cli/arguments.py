"""Arguments that several commands share, and what is made of them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from layerwright.core.errors import UserError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, a hub name, or `demo`.")]
Text = Annotated[str | None, typer.Option("--text", metavar="FILE|DIR", help="Text, a folder of it, .jsonl[:FIELD].")]
Images = Annotated[str | None, typer.Option("--images", metavar="DIR", help="A folder of images.")]
Arrays = Annotated[str | None, typer.Option("--arrays", metavar="FILE.npz", help="Arrays named as model inputs.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code from the model's folder.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME.OPTION=VALUE ...", help="Options.")]
Blocks = Annotated[str | None, typer.Option("--blocks", metavar="PATH", help="The tower, as in model.layers.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="How much data to read.")]
Length = Annotated[int | None, typer.Option("--length", metavar="N", help="Tokens in a sequence of text.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of samples, probes and intervals.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def data_of(model: str, *sources: str | None) -> str | None:
    """The one source that was named; the bundled model brings its own."""
    given = [source for source in sources if source is not None]
    if len(given) > 1:
        raise UserError("got several of --text, --images and --arrays; expected one")
    return given[0] if given else "demo" if model == "demo" else None


def options_of(settings: Sequence[str], of: str | None = None) -> dict[str, dict[str, Any]]:
    """`NAME.OPTION=VALUE` as `{name: {option: value}}`, values read as YAML scalars.

    Args:
        settings: as they were given.
        of: whose option `OPTION=VALUE` without a name is.
    """
    import yaml

    from layerwright.core.yaml_numbers import Loader

    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, option = key.partition(".") if "." in key or of is None else (of, ".", key)
        if not (equals and dot and name and option):
            raise UserError(f"got --set {setting}; expected NAME.OPTION=VALUE, as in angular_distance.gap=2")
        try:
            options.setdefault(name, {})[option] = yaml.load(value, Loader)
        except yaml.YAMLError:
            raise UserError(f"got --set {setting}; its value {value!r} cannot be read") from None
    return options


def say(line: str) -> None:
    """Print a line that a user should read beside the result."""
    print(line, file=sys.stderr)


def check_writable(folder: Path) -> None:
    """Find out before the work, not after it, that the result cannot be written. Leaves nothing behind."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write to {folder}: {nearest} is a file; name a folder with --out")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder with --out") from None
