"""The command line: the verbs of `layerwright`, plus `list` and `explain`.

Nothing here imports torch before a command runs, so that help answers at once. Every error that a user can cause is
one line on standard error and exit code 2; a failed check is 1; Ctrl-C is 130.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from layerwright import __version__
from layerwright.core.errors import UserError

app = typer.Typer(help="Measure the depth and width of neural networks.", add_completion=False)
claims_app = typer.Typer(help="What papers claim, tested: list the recorded verdicts, or run the experiments.")
app.add_typer(claims_app, name="claims")

# Flags that take all the words after them, as in `--only angular_distance logit_lens`; click knows one word a flag.
_MANY = ("--only", "--skip", "--set")
_USAGE_ERROR = typer.BadParameter.__base__  # typer exports this subclass of click's usage errors, not the class itself


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


class Budget(StrEnum):
    """How large an experiment."""

    small = "small"
    full = "full"


class Kind(StrEnum):
    """What there is to list."""

    measures = "measures"
    claims = "claims"
    towers = "towers"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, a hub name, or `demo`.")]
Text = Annotated[str | None, typer.Option("--text", metavar="FILE|DIR", help="Text, a folder of it, .jsonl[:FIELD].")]
Images = Annotated[str | None, typer.Option("--images", metavar="DIR", help="A folder of images.")]
Arrays = Annotated[str | None, typer.Option("--arrays", metavar="FILE.npz", help="Arrays named as model inputs.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code from the model's folder.")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"layerwright {__version__}")
        raise typer.Exit


@app.command()
def survey(
    model: Model,
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    blocks: Annotated[str | None, typer.Option(metavar="PATH", help="The tower, as in model.layers.")] = None,
    tier: Annotated[Tier, typer.Option(help="How much to compute.")] = Tier.standard,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Just these measures.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME ...", help="Not these measures.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.OPTION=VALUE ...", help="Options of measures.")
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL2", help="Another model, on the same data.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write survey.json, tables and report.html.")] = None,
    device: Annotated[str, typer.Option(metavar="D", help="Where to compute.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(metavar="T", help="Of the weights; default the checkpoint's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="How much data to read.")] = None,
    length: Annotated[int | None, typer.Option(metavar="N", help="Tokens in a sequence of text.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of samples, probes and intervals.")] = 0,
    stream: Annotated[Stream, typer.Option(help="Block by block; auto: where it would not fit.")] = Stream.auto,
    jobs: Annotated[str | None, typer.Option(metavar="N|ray", help="Local workers, or a Ray cluster.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print survey.json instead of tables.")] = False,
    trust_remote_code: Remote = False,
) -> None:
    """Measure what each block of MODEL does, and say what stands out."""
    data = _data(model, text, images, arrays)
    settings = _options(options or [])
    if out is not None:
        _check_writable(out)
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
        out=out,
        progress=sys.stderr.isatty(),
        say=_say,
    )
    if as_json:
        print(json.dumps(result.to_dict(), allow_nan=False))
    else:
        from layerwright.report import terminal

        terminal.show(result, folder=out)


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.measures,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Whose towers to list.")] = None,
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    trust_remote_code: Remote = False,
) -> None:
    """List measures, claims, or the towers of blocks in a model."""
    from layerwright.report import terminal

    if kind is Kind.claims:
        _list_claims()
    elif kind is Kind.measures:
        rows = [(m.name, m.tier, m.title) for m in _measures().values()]
        terminal.rows(("measure", "tier", "what it is"), rows)
    elif model is None:
        raise UserError("`lw list towers` needs a model: lw list towers MODEL")
    else:
        towers = _towers(model, _data(model, text, images, arrays), trust_remote_code)
        terminal.rows(("path", "depth", "block", "note"), [(t.path, t.depth, t.block_class, _flaw(t)) for t in towers])


@app.command()
def explain(name: Annotated[str, typer.Argument(metavar="NAME", help="A measure or a claim.")]) -> None:
    """Explain a measure or a claim: definition, unit, options, paper."""
    from layerwright.core import claim, registry
    from layerwright.report import terminal

    measures = _measures()
    if name in measures:
        terminal.explain(measures[name])
        return
    from layerwright import verbs

    verdicts = {record["claim"]: record for record in verbs.claims().attrs["records"]}
    if name not in verdicts:
        near = registry.nearest(name, [*measures, *verdicts])
        raise UserError(f"nothing is called {name!r}; did you mean {near!r}? `lw list` shows all")
    terminal.explain_claim(claim.CLAIMS[name], verdicts[name])


@app.command()
def checksum(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder with safetensors weights.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare instead of writing.")] = False,
) -> None:
    """Write checksums.json beside the weights, or find damaged weights with it. Exit code 1 where there are any."""
    from layerwright.core.checksums import MANIFEST, check_writable, write_manifest
    from layerwright.core.progress import bars
    from layerwright.core.shards import Checkpoint

    if not verify:
        checkpoint = Checkpoint.open_unchecked(folder)
        check_writable(folder)
        with bars(sys.stderr.isatty()) as progress:
            digests = {entry.name: digest for entry, digest in checkpoint.digests(progress)}
        print(f"{len(digests)} tensors: {write_manifest(folder, digests)}")
        return
    checkpoint = Checkpoint.open(folder)
    with bars(sys.stderr.isatty()) as progress:
        faults = checkpoint.faults(progress)
    print("\n".join(faults or [f"{len(checkpoint.entries)} tensors match {folder / MANIFEST}"]))
    if faults:
        raise typer.Exit(1)


@claims_app.callback(invoke_without_command=True)
def _claims(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        _list_claims()


@claims_app.command("run")
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
    _check_writable(out)
    from layerwright import verbs
    from layerwright.report import terminal

    progress = sys.stderr.isatty()
    verdicts = verbs.claims(names or [], all=everything, budget=budget.value, seeds=seeds, out=out, progress=progress)
    terminal.claims(verdicts, folder=out)
    if "fails" in set(verdicts["verdict"]):
        raise typer.Exit(1)


def _list_claims() -> None:
    from layerwright import verbs
    from layerwright.report import terminal

    terminal.claims(verbs.claims())


def _measures() -> dict[str, Any]:
    import layerwright.measures  # noqa: F401  registers them
    from layerwright.core import registry

    return registry.MEASURES


def _towers(model: str, data: str | None, trust_remote_code: bool) -> Sequence[Any]:
    from layerwright.core.data import load_data
    from layerwright.core.load import load_model
    from layerwright.core.stack import Stack

    module, tokenizer, _ = load_model(model, trust_remote_code=trust_remote_code)
    return Stack.find(module, load_data(data, module, tokenizer, max_tokens=64).batches[0]).towers


def _flaw(tower: Any) -> str:
    if tower.surveyable:
        return ""
    return "outputs do not feed the next input" if not tower.chained else "the shape changes on the way"


def _data(model: str, *sources: str | None) -> str | None:
    """The one source that was named; the bundled model brings its own."""
    given = [source for source in sources if source is not None]
    if len(given) > 1:
        raise UserError("got several of --text, --images and --arrays; expected one")
    return given[0] if given else "demo" if model == "demo" else None


def _options(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.OPTION=VALUE` as `{name: {option: value}}`, values read as YAML scalars."""
    import yaml

    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name and option):
            raise UserError(f"got --set {setting}; expected NAME.OPTION=VALUE, as in angular_distance.gap=2")
        try:
            options.setdefault(name, {})[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"got --set {setting}; its value {value!r} cannot be read") from None
    return options


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _check_writable(folder: Path) -> None:
    """Find out before the work, not after it, that the result cannot be written. Leaves nothing behind."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write to {folder}: {nearest} is a file; name a folder with --out")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder with --out") from None


def _repeat_flags(arguments: Sequence[str]) -> list[str]:
    """Repeat a flag for each of the words after it.

    Example:
        >>> _repeat_flags(["survey", "demo", "--only", "a", "b", "--seed", "1"])
        ['survey', 'demo', '--only', 'a', '--only', 'b', '--seed', '1']
    """
    expanded: list[str] = []
    flag, words = "", 0
    for word in arguments:
        if word.startswith("-"):
            flag, words = (word if word in _MANY else ""), 0
        elif flag:
            words += 1
            if words > 1:
                expanded.append(flag)
        expanded.append(word)
    return expanded


def _fail(message: str, code: int = 2) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _run(arguments: Sequence[str]) -> int:
    """One command; its exit code."""
    try:
        return app(_repeat_flags(arguments or ["--help"]), prog_name="lw", standalone_mode=False) or 0
    except UserError as error:
        return _fail(str(error))
    except _USAGE_ERROR as error:  # type: ignore[misc]
        return _fail(f"{error.format_message().rstrip('.')}; `lw --help` shows the usage")
    except OSError as error:
        return _fail(f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}")


def _stop(number: int, frame: object) -> None:
    """A polite request to end (a batch system does so) is taken like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of `layerwright` and `lw`."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        code = _run(sys.argv[1:])
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    finally:
        asked = signal.signal(signal.SIGTERM, before) is signal.SIG_IGN
    if code == 130:  # typer turns Ctrl-C inside a command into this exit code
        by, code = ("SIGTERM", 143) if asked else ("Ctrl-C", 130)
        print(f"stopped by {by}; nothing was left half-written", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
