"""`lw list`, `lw explain` and `lw checksum`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from layerwright.cli.arguments import Arrays, Images, Remote, Text, data_of
from layerwright.cli.claims import list_claims
from layerwright.core.errors import UserError


class Kind(StrEnum):
    """What there is to list."""

    measures = "measures"
    planners = "planners"
    steps = "steps"
    theories = "theories"
    claims = "claims"
    towers = "towers"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.measures,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Whose towers to list.")] = None,
    text: Text = None,
    images: Images = None,
    arrays: Arrays = None,
    trust_remote_code: Remote = False,
) -> None:
    """List measures, planners, steps of plans, theories, claims, or the towers of blocks in a model."""
    from layerwright.report import terminal

    if kind is Kind.claims:
        list_claims()
    elif kind is Kind.planners:
        rows = [(p.name, p.tier, p.title) for p in _planners().values()]
        terminal.rows(("planner", "tier", "what it proposes"), rows)
    elif kind is Kind.steps:
        rows = [(s.name, s.keeps, s.title) for s in _steps().values()]
        terminal.rows(("step", "preserving", "what it does"), rows)
    elif kind is Kind.theories:
        terminal.rows(("theory", "what it predicts"), [(t.name, t.title) for t in _theories().values()])
    elif kind is Kind.measures:
        rows = [(m.name, m.tier, m.title) for m in _measures().values()]
        terminal.rows(("measure", "tier", "what it is"), rows)
    elif model is None:
        raise UserError("`lw list towers` needs a model: lw list towers MODEL")
    else:
        towers = _towers(model, data_of(model, text, images, arrays), trust_remote_code)
        terminal.rows(("path", "depth", "block", "note"), [(t.path, t.depth, t.block_class, _flaw(t)) for t in towers])


def explain(name: Annotated[str, typer.Argument(metavar="NAME", help="What `lw list` names.")]) -> None:
    """Explain a measure, a planner, a step, a theory, a claim or a function: definition, unit, options, paper."""
    from layerwright.core import claim, registry
    from layerwright.report import terminal

    measures = _measures()
    if name in measures:
        terminal.explain(measures[name])
        return
    planners, steps = _planners(), _steps()
    if name in planners:
        p = planners[name]
        facts = {"tier": p.tier, "reads": ", ".join(p.needs), "paper": terminal.cited(p.paper)}
        terminal.explain_function(name, p.function, facts)
        return
    if name in steps:
        terminal.explain_function(name, steps[name].function, {"preserving": steps[name].keeps})
        return
    theories = _theories()
    if name in theories:
        t = theories[name]
        options = ", ".join(f"--set {key}={value}" for key, value in t.options.items()) or "none"
        facts = {"reads": ", ".join(t.needs) or "nothing", "options": options, "paper": terminal.cited(t.paper)}
        terminal.explain_function(name, t.function, facts)
        return
    functions = _functions()
    if name in functions:
        terminal.explain_function(name, functions[name], {"in Python": functions[name].__module__})
        return
    from layerwright import verbs

    verdicts = {record["claim"]: record for record in verbs.claims().attrs["records"]}
    if name not in verdicts:
        near = registry.nearest(name, [*measures, *planners, *steps, *theories, *functions, *verdicts])
        raise UserError(f"nothing is called {name!r}; did you mean {near!r}? `lw list` shows all")
    terminal.explain_claim(claim.CLAIMS[name], verdicts[name])


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


def _measures() -> dict[str, Any]:
    import layerwright.measures  # noqa: F401  registers them
    from layerwright.core import registry

    return registry.MEASURES


def _planners() -> dict[str, Any]:
    import layerwright.edits  # noqa: F401  registers them
    from layerwright.core import planner

    return planner.PLANNERS


def _steps() -> dict[str, Any]:
    from layerwright.core.steps import STEPS

    return STEPS


def _theories() -> dict[str, Any]:
    import layerwright.theories  # noqa: F401  registers them
    from layerwright.core import theory

    return theory.THEORIES


def _functions() -> dict[str, Any]:
    """What the package offers in Python, also the words of a tower."""
    import layerwright
    from layerwright import theories

    rooms = ((layerwright, layerwright.__all__), (theories, vars(theories)))
    found = {name: getattr(room, name) for room, names in rooms for name in names if not name.startswith("_")}
    return {name: value for name, value in found.items() if callable(value)}


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
