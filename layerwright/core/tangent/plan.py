"""How a tangent kernel is computed: which derivatives are made, and how many inputs and outputs are taken at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from torch import Tensor

from layerwright.core.tangent.factors import matrix_shape
from layerwright.core.tangent.record import Recorded
from layerwright.maths.tangent import Outer, by_factors

# What a tile costs beside its ways back, in units of one for each of its inputs: a call, and a way back to find out
# which sample is which; and to begin at all.
_CALL, _START = 2, 8


class Task(NamedTuple):
    """What is asked for.

    Attributes:
        inputs: of both sets, N and M.
        outputs: combinations of outputs, K.
        form: as in `maths.tangent.products`.
        memory: bytes beside the result.
        alone: whether the first set meets itself.
    """

    inputs: tuple[int, int]
    outputs: int
    form: str
    memory: int
    alone: bool


@dataclass
class Plan:
    """How it is done.

    Attributes:
        task: what is asked for.
        inputs: in a tile.
        outputs: in a tile.
        held: tiles that are kept while others are recorded.
    """

    task: Task
    inputs: int
    outputs: int
    held: int
    _rows: dict[str, bool] = field(default_factory=dict)

    def as_rows(self, name: str, uses: Sequence[Outer], shape: tuple[int, int]) -> bool:
        """Whether the derivatives by a matrix are made, which is decided once: tiles must agree.

        Args:
            name: of the parameter.
            uses: of it, by any inputs and outputs.
            shape: of it.
        """
        if name not in self._rows:
            task, places = self.task, max(side.shape[2] for use in uses for side in use[:2] if side.ndim == 4)
            fits = _of_pairs(task, *task.inputs, places) <= task.memory if self.inputs >= max(task.inputs) else True
            self._rows[name] = not (fits and by_factors(uses, shape, task.inputs, task.outputs, task.form))
        return self._rows[name]


def at_once(task: Task, parameters: Mapping[str, Tensor], graph: int) -> Plan | None:
    """All in one tile, where memory surely holds that; else None.

    Args:
        task: what is asked for.
        parameters: by name.
        graph: bytes of the graph of one input.
    """
    n = task.inputs[0] if task.alone else sum(task.inputs)
    rows = sum(p.numel() * max(4, p.itemsize) for p in parameters.values())
    if n * (task.outputs * (rows + 4 * graph) + graph) + _of_pairs(task, *task.inputs, 1) > task.memory:
        return None
    return Plan(task, max(task.inputs), task.outputs, 1)


def planned(task: Task, seen: Recorded, parameters: Mapping[str, Tensor], graph: int) -> Plan:
    """The cheapest way by parameter, and the tiles with the least to be recorded that memory holds.

    Args:
        task: what is asked for.
        seen: what was recorded of one input and one combination of outputs, factors wherever there are.
        parameters: by name.
        graph: bytes of the graph of one input.
    """
    plan, moving, fixed, places = Plan(task, 1, 1, 1), 0, 0, 0
    for name, factor in seen.factors.items():
        p = parameters[name]
        if isinstance(factor, Tensor) or plan.as_rows(name, factor, matrix_shape(p)):
            moving += p.numel() * max(4, p.itemsize)
        else:
            sides = [side for use in factor for side in use[:2]]
            moving += sum(side.nbytes for side in sides if side.ndim == 4)
            fixed += sum(side.nbytes for side in sides if side.ndim != 4)
            places = max(places, *(side.shape[2] for side in sides if side.ndim == 4))

    def held(n: int, k: int) -> int:
        """Tiles that memory holds beside the graph, what comes back, and products of all pairs."""
        beside = n * (graph + (k + 3) * seen.back) + _of_pairs(task._replace(outputs=k), n, n, places)
        return (task.memory - beside) // max(1, n * (k * moving + fixed))

    sizes = product(_halves(max(task.inputs)), _halves(task.outputs))
    plan.inputs, plan.outputs = min(
        (s for s in sizes if held(*s) >= 2), key=lambda s: _cost(task, s[0], s[1], held(*s)), default=(1, 1)
    )
    plan.held = max(1, held(plan.inputs, plan.outputs) - 1)
    return plan


def _of_pairs(task: Task, n: int, m: int, places: int) -> int:
    """Bytes of a product of what comes back, of all pairs of places, and of what is made of it."""
    return 8 * n * m * (task.outputs**2 if task.form == "full" else task.outputs) * (places**2 + 1)


def _cost(task: Task, n: int, k: int, held: int) -> float:
    """Ways back, of one input each, that tiles of n inputs and k outputs take."""
    chunks = -(-task.outputs // k)
    together = chunks if task.form == "full" else 1  # chunks of outputs that meet
    first, second = (-(-size // n) * together for size in task.inputs)
    starts = range(0, first, held - 1)
    recorded = sum(min(held - 1, first - s) + (max(0, first - s - held + 1) if task.alone else second) for s in starts)
    return recorded * (chunks // together) * (n * (_CALL + k) + _START)


def _halves(n: int) -> list[int]:
    """The number, half of it, and so on down to 1."""
    found = [n]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found
