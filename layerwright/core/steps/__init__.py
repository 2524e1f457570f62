"""Steps of a plan: each file holds functions from a draft to the next one."""

from __future__ import annotations

from layerwright.core.steps import fold as fold
from layerwright.core.steps import grow as grow
from layerwright.core.steps import heal as heal
from layerwright.core.steps import insert as insert
from layerwright.core.steps import order as order
from layerwright.core.steps import parallel as parallel
from layerwright.core.steps import recurse as recurse
from layerwright.core.steps import widen as widen
from layerwright.core.steps.step import STEPS as STEPS
from layerwright.core.steps.step import Step as Step
from layerwright.core.steps.step import apply_step as apply_step
from layerwright.core.steps.step import check_step as check_step
from layerwright.core.steps.step import only_order as only_order
from layerwright.core.steps.step import preserved_by as preserved_by
