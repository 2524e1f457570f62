"""Rung 1: every weight is there and comes from somewhere, every block runs and is numbered and made as it should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import call
from layerwright.core.load import first_line
from layerwright.core.makes import counters, difference, makes_of, totals
from layerwright.core.rungs.answers import largest
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.configured import configured
from layerwright.core.rungs.outcome import FAILED, PASSED, Outcome
from layerwright.core.trace import same

_LIMIT = "no fault"


def structure(case: Case) -> Outcome:
    """Look for the first fault that can be seen without comparing answers."""
    checks = (_real, _finite, _runs, _idle, _depth, _numbered, configured, _made, _copied, _sourced)
    for check in checks:
        if problem := check(case):
            return Outcome(FAILED, problem, _LIMIT)
    numbers = {
        "blocks": case.new.depth,
        "base_blocks": case.base.depth,
        "tensors": len(case.after.state_dict()),
        "parameters": sum(p.numel() for p in case.after.parameters()),
        "base_parameters": sum(p.numel() for p in case.before.parameters()),
    }
    what = "each weight a copy of its source" if _comparable(case) else "weights finite"
    old, new = case.base.depth, case.new.depth
    blocks = f"{old} blocks became {new}" if old != new else f"{new} blocks"
    return Outcome(PASSED, f"{blocks}, all run; {what}", _LIMIT, numbers)


# Weights


def _real(case: Case) -> str | None:
    """A weight without numbers: it was created, and never filled."""
    for name, tensor in (*case.after.named_parameters(), *case.after.named_buffers()):
        if tensor.is_meta:
            return f"{name} has no numbers: it is still on the meta device"
    return None


def _finite(case: Case) -> str | None:
    """A weight with NaN or infinity, where the base has none."""
    bad = [name for name, p in case.after.named_parameters() if not _is_finite(p)]
    if bad and all(_is_finite(p) for p in case.before.parameters()):
        return f"{bad[0]} holds NaN or infinity, and no weight of the base does"
    return None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _sourced(case: Case) -> str | None:
    """A tensor that nobody knows the source of, or that was to be made and is not there."""
    if case.provenance is None:
        return None
    made, base = (_described(model, case.provenance) for model in (case.after, case.before))
    known = {made[name].data_ptr() for name in case.provenance if name in made}
    for name, tensor in made.items():
        if name not in case.provenance and tensor.data_ptr() not in known:
            return f"{name} comes from nowhere: it has no provenance"
    for name, sources in case.provenance.items():
        if name not in made:
            return f"{name} was to be made and is not in the new model"
        if absent := [source for source in sources if source not in base]:
            return f"{name} is said to come from {absent[0]}, which the base does not have"
    return None


def _described(model: nn.Module, provenance: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model by the names that provenance knows, which are those inside a wrapper of the user's own."""
    state = model.state_dict()
    first = next(iter(provenance), "")
    inside = next((name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")), "")
    return {name.removeprefix(inside): tensor for name, tensor in state.items()}


def _comparable(case: Case) -> bool:
    return case.copies and case.order is not None


def _copied(case: Case) -> str | None:
    """A weight that is not its source's, bit for bit, where the plan only chose blocks."""
    for name, source, new, old in _pairs(case) if _comparable(case) else ():
        if new is None or old is None:
            missing = "new model" if new is None else "base"
            return f"{name} has no counterpart: {source} is not in the {missing}"
        if not same(old, new.to(old.device)):
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                return f"{name} is {_kind(new)}, and its source {source} is {_kind(old)}"
            off = largest(new.to(old.device).double(), old.double())
            return f"{name} is not a copy of {source}: it is {off:.2g} off"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _pairs(case: Case) -> Iterator[tuple[str, str, Tensor | None, Tensor | None]]:
    """Each tensor of the new model beside that of the base which it should equal."""
    assert case.order is not None
    new_paths = [case.new.tower.block_paths[k] for k in case.new.order]
    old_paths = [case.base.tower.block_paths[case.base.order[k]] for k in case.order]
    made, base = case.after.state_dict(), case.before.state_dict()
    for path, origin in dict.fromkeys(zip(new_paths, old_paths)):
        ours, theirs = _below(made, path), _below(base, origin)
        for name in {**ours, **theirs}:
            yield f"{path}.{name}", f"{origin}.{name}", ours.get(name), theirs.get(name)
    # What follows the tower in the same container has other numbers there: both are taken in order.
    outside = [_not_below(made, new_paths), _not_below(base, case.base.tower.block_paths)]
    for n in range(max(map(len, outside))):
        (name, new), (source, old) = (x[n] if n < len(x) else ("", None) for x in outside)
        yield name or source, source or name, new, old


def _below(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{path}."): t for name, t in state.items() if name.startswith(f"{path}.")}


def _not_below(state: Mapping[str, Tensor], paths: Sequence[str]) -> list[tuple[str, Tensor]]:
    """What is outside the blocks; a block that stands in its list twice goes by one of its names."""
    below = tuple(f"{path}." for path in paths)
    inside = {t.data_ptr() for name, t in state.items() if name.startswith(below)}
    return [(name, t) for name, t in state.items() if not name.startswith(below) and t.data_ptr() not in inside]


# Blocks


def _runs(case: Case) -> str | None:
    """A model that cannot be run, or shows no tower."""
    case.base_pass.check()  # what goes wrong with the base is not the edit's fault, and is raised
    try:
        case.new_pass.check()
    except UserError as error:
        return f"the new model shows no tower: {error}"
    except Exception as error:  # the model's own code may raise anything
        return f"the new model does not run: {type(error).__name__}: {first_line(error)}"
    return None


def _idle(case: Case) -> str | None:
    """A block that is there and never called, as where the configuration still has the old depth."""
    idle = _never_called(case.after, case.new.tower.path, case.new_inputs)
    if not idle or _never_called(case.before, case.base.tower.path, case.base_inputs):
        return None
    return f"block {idle[0]} is there and does not run: {case.new.depth} blocks ran of {case.new.depth + len(idle)}"


def _never_called(model: nn.Module, path: str, inputs: Any) -> list[str]:
    stem = path.partition("[")[0]
    try:
        container = model if stem == "(model)" else model.get_submodule(stem)
    except AttributeError:  # a family of attributes
        return []
    called: set[nn.Module] = set()

    def note(module: nn.Module, args: Any) -> None:
        called.add(module)

    handles = [child.register_forward_pre_hook(note) for child in container.children()]
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    prefix = "" if stem == "(model)" else f"{stem}."
    return [prefix + name for name, child in container.named_children() if child not in called]


def _depth(case: Case) -> str | None:
    """A tower that is shorter or longer than the plan says."""
    if case.order is None or len(case.order) == case.new.depth:
        return None
    return f"the new tower runs {case.new.depth} blocks; the plan makes {len(case.order)}"


def _numbered(case: Case) -> str | None:
    """A block whose number, by which it finds its place in the cache, is not its place."""
    plain = case.base.order == tuple(range(case.base.depth))
    for name, start in counters(case.base.blocks).items() if plain else ():
        for j, k in enumerate(case.new.order):
            path, _, own = name.rpartition(".")
            found = _attribute(case.new.blocks[k], path, own)
            if type(found) is int and found != start + j:
                twins = [i for i, other in enumerate(case.new.order) if other == k and i != j]
                why = f"; it is the same module as block {twins[0]}" if twins else ""
                return f"{case.place(j)}: {name} is {found}, expected {start + j}{why}"
    return None


def _attribute(block: nn.Module, path: str, name: str) -> Any:
    try:
        return getattr(block.get_submodule(path), name, None)
    except AttributeError:
        return None


def _made(case: Case) -> str | None:
    """A block that is made otherwise than its source: another kind of attention, other shapes."""
    if not _comparable(case):
        return None
    assert case.order is not None
    numbers = counters(case.base.blocks)
    wanted, made = (makes_of(stack.blocks, numbers) for stack in (case.base, case.new))
    counts = totals(wanted) & totals(made)
    for j, k in enumerate(case.order):
        if (what := difference(made[case.new.order[j]], wanted[case.base.order[k]], counts)) is not None:
            return f"{case.place(j)} is not made as its source, block {k}: {_is_not(what)}"
    return None


def _is_not(difference: str) -> str:
    return difference.replace(" would be ", " is ", 1)
