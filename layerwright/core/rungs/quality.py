"""Rung 6: what the edit costs in loss, document by document, and in tasks where they are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

from torch import nn

from layerwright.core.errors import UserError
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.losses import ratio
from layerwright.core.rungs.outcome import FAILED, MEASURED, PASSED, Outcome, not_run


def quality(case: Case) -> Outcome:
    """Compare the mean losses of both models on the same documents, with a paired bootstrap interval over documents.

    Where the plan gives a `max_ratio`, the ratio itself is held to it, not the ends of its interval.
    """
    if not case.documents:
        return not_run("no text was given to measure the loss on")
    before, after = case.base_losses, case.new_losses
    value, low, high = ratio(before, after, case.seed)
    numbers: dict[str, Any] = {
        "documents": len(before.total),
        "tokens": int(before.tokens.sum()),
        "before": before.mean,
        "after": after.mean,
        "ratio": value,
        "low": low,
        "high": high,
        "per_document": {"before": _means(before), "after": _means(after)},
    }
    interval = _interval(low, high, len(before.total))
    said = [f"loss {before.mean:.3f} → {after.mean:.3f} nat/token, ratio {value:.3f}{interval}"]
    for task, (old, new) in _tasks(case).items():
        numbers.setdefault("tasks", {})[task] = {"before": old, "after": new}
        said.append(f"{task} {old:.3f} → {new:.3f}")
    most = case.requirements.get("loss", {}).get("max_ratio")
    if most is None:
        return Outcome(MEASURED, "; ".join(said), "", numbers)
    held = math.isfinite(value) and value <= most
    if math.isfinite(low) and low <= most < high:
        said.append("the interval leaves both open")
    return Outcome(PASSED if held else FAILED, "; ".join(said), f"ratio ≤ {most:g}", numbers)


def _means(found: Any) -> list[float]:
    return [float(total / tokens) if tokens else math.nan for total, tokens in zip(found.total, found.tokens)]


def _interval(low: float, high: float, documents: int) -> str:
    if not math.isfinite(low):
        return f" ({documents} document: no interval)"
    return f" [{low:.3f}, {high:.3f}] over {documents} documents"


# Tasks


def check_tasks(case: Case) -> None:
    """Find out before anything runs that tasks cannot be.

    Raises:
        UserError: lm-eval is not installed, or there is no tokenizer.
    """
    if case.tasks and importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"tasks {', '.join(case.tasks)} need lm-eval; install it with `pip install layerwright[eval]`")
    if case.tasks and case.tokenizer is None:
        raise UserError("tasks need a tokenizer, and neither model comes with one")


def _tasks(case: Case) -> dict[str, tuple[float, float]]:
    """The first number that lm-eval gives for each task, before and after."""
    if not case.tasks:
        return {}
    check_tasks(case)
    before, after = (_evaluated(case, model) for model in (case.before, case.after))
    return {task: (before[task], after[task]) for task in case.tasks}


def _evaluated(case: Case, model: nn.Module) -> dict[str, float]:
    harness, models = (importlib.import_module(name) for name in ("lm_eval", "lm_eval.models.huggingface"))
    wrapped = models.HFLM(pretrained=model, tokenizer=case.tokenizer)
    results = harness.simple_evaluate(model=wrapped, tasks=list(case.tasks), random_seed=case.seed)["results"]
    return {task: _first_number(results[task]) for task in case.tasks}


def _first_number(result: Any) -> float:
    """Numbers go by `metric,filter`; standard errors and the task's own name do not count."""
    for name, value in result.items():
        if "," in name and "stderr" not in name and isinstance(value, (int, float)):
            return float(value)
    return math.nan
