"""Rung 8: the plan against random plans of the same budget, as a score that random plans match is worth nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from torch import nn

from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.losses import Losses, losses
from layerwright.core.rungs.outcome import FAILED, MEASURED, PASSED, Outcome, not_run

_PLANS = 3


def control(case: Case) -> Outcome:
    """Count the random plans whose mean loss, on the same documents, is not above the new model's.

    The test: the new model's loss is below the median of the losses of the random ones.
    """
    if case.control is None:
        return not_run("nobody makes random plans of the same budget here")
    if not case.documents:
        return not_run("no text was given to measure the loss on")
    asked = case.requirements.get("control")
    plans = int((asked or {}).get("plans", _PLANS))
    found = []
    for number in range(plans):
        loss = _loss(case, case.control(case.seed + number))
        found.append(loss.mean if math.isfinite(loss.mean) else math.inf)
    own, middle = case.new_losses.mean, median(found)
    better = sum(loss <= own for loss in found)
    numbers = {"plans": plans, "losses": found, "own": own, "median": middle, "better": better, "ratio": own / middle}
    said = f"{better} of {plans} random plans do as well or better; loss {own:.3f} against their median {middle:.3f}"
    if asked is None:
        return Outcome(MEASURED, said, "", numbers)
    return Outcome(PASSED if own < middle else FAILED, said, "loss < median of random plans", numbers)


def _loss(case: Case, model: nn.Module) -> Losses:
    """A random plan's loss; its tower may be of any depth, and only its answers are looked at."""
    model = unwrap(model)
    with undisturbed(model):
        return losses(replace(case.base, model=model), case.documents, case.prefix)
