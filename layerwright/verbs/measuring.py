"""`survey`: measure what every block of a model does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwright.core.progress import bars

if TYPE_CHECKING:
    from torch import nn

    from layerwright.core.survey import Survey

# What theory says of the stream where it knows no more of the model.
INDEPENDENT = "independent_branches"


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
    against_data: Any = None,
    theory: bool = False,
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
        against_data: other data to survey the model on (or the other model): slow answers against fast ones, say.
        theory: hold theory beside the measurements: `signal_propagation` where the model is a tower that it knows, else
            the size of the stream from `independent_branches`, and a note says why.
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
    from layerwright.core.compare import differences
    from layerwright.core.ranks import Ranks
    from layerwright.core.registry import choose
    from layerwright.core.registry import find as find_measure

    del measures  # importing the package registers every measure
    start, two = time.perf_counter(), against is not None or against_data is not None
    chosen = choose(tier, only, skip := [*skip])
    if theory and INDEPENDENT not in [*skip, *(m.name for m in chosen)]:
        chosen.append(find_measure(INDEPENDENT))
    options = _checked(options or {}, chosen, seed)
    leads = Ranks.of(model).leads and Ranks.of(against).leads
    folder = Path(out) if out is not None and leads else None
    with bars(progress and leads) as shown:
        request = engine.Request(
            model, data, chosen, options, blocks, tokenizer, device, dtype, max_tokens, length, seed, trust_remote_code,
            stream, None if jobs is None else str(jobs), folder, shown, say,
        )  # fmt: skip
        requests = {"model": request} | ({"against": request.of(against, against_data)} if two else {})
        found = engine.answers(requests)
        _pair(found, options)
    settings = {
        "tier": tier,
        "measures": [m.name for m in chosen],
        "options": {name: dict(o) for name, o in options.items()},
        "seed": seed,
        "layerwright": __version__,
        "seconds": round(time.perf_counter() - start, 2),
    }
    result = _surveyed(found["model"], settings)
    if two:
        result.against = _surveyed(found["against"], settings)
        one, other = (found[name].recording.reduced for name in ("model", "against"))
        result.differences = differences(one, other, seed)
    if theory:
        from layerwright.verbs.propagating import beside

        for name, surveyed in (("model", result), ("against", result.against)):
            if surveyed is not None:
                beside(surveyed, found[name].stack, found[name].data.batches[0], seed)
    if folder is not None:
        result.save(folder)
        engine.tidy(folder)
    return result


def _pair(found: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Let measures of pairs see what was kept of both models, or of one twice where there is no other."""
    one, two = found["model"], found.get("against", found["model"])
    other = dict(two.recording.collected)
    if one.data.digest != two.data.digest and "sequences" in other:
        other["sequences"] = ~other["sequences"]  # they are none of this survey's
    for m in one.recording.pairs:
        one.recording.measure_collection(m, options.get(m.name, {}), other)


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


def _checked(options: Mapping[str, Mapping[str, Any]], chosen: list[Any], seed: int) -> Mapping[str, Mapping[str, Any]]:
    """The options of the chosen measures; those that draw at random get the survey's seed, if they get no other."""
    from layerwright.core.registry import check_options, find

    for name, chosen_options in options.items():
        check_options(f"measure {name!r}", find(name).options, chosen_options)
    given = {m.name: ({"seed": seed} if "seed" in m.options else {}) | dict(options.get(m.name, {})) for m in chosen}
    return {name: values for name, values in given.items() if values}
