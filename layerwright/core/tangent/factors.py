"""Out of what comes back to the uses of parameters: their derivatives, or what these are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from layerwright.core.tangent.graph import kind, turned
from layerwright.core.tangent.routes import Deltas, Link, Route
from layerwright.maths.tangent import Factor, Outer, rows, total

AsRows = Callable[[str, Sequence[Outer], tuple[int, int]], bool]


def factors(
    routes: Mapping[str, Sequence[Route]],
    parameters: Mapping[str, Tensor],
    as_rows: AsRows,
    backs: Deltas,
) -> dict[str, Factor]:
    """Of every parameter.

    Args:
        routes: the uses of each.
        parameters: by name.
        as_rows: whether the derivatives themselves are wanted, where there is a choice.
        backs: what comes back to nodes from K combinations of outputs, `[K, …]`.
    """
    found: dict[str, Factor] = {}
    alone: dict[Node, Tensor] = {}  # what comes back to matrices that are used once, at one place
    for name, some in routes.items():
        p, node = parameters[name], some[0].step.node
        if any(r.use.read is None or _turned(r, p) is None for r in some):
            if len(some) == 1 and node in alone and _is_bias(some[0]):
                found[name] = alone[node].squeeze(2)
            else:
                found[name] = total([_by_parameter(r, p, backs) for r in some])
            continue
        uses = [_outer(r, p, backs) for r in some]
        if as_rows(name, uses, matrix_shape(p)):
            found[name] = rows(uses, matrix_shape(p))
            continue
        found[name] = uses
        moving = next(side for side in uses[0][:2] if side.ndim == 4)
        if len(some) == 1 and moving.shape[2] == 1:
            alone[node] = moving
    return found


def matrix_shape(p: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter of two axes or more, those behind the first as one."""
    return p.shape[0], math.prod(p.shape[1:])


def _outer(route: Route, p: Tensor, backs: Deltas) -> Outer:
    """Of a matrix, along its rows and columns."""
    moving, fixed = _moving(route, p, backs), _fixed(route, p)
    sides = (moving, fixed) if route.use.left != bool(_turned(route, p)) else (fixed, moving)
    return Outer(*sides, route.use.groups)


def _by_parameter(route: Route, p: Tensor, backs: Deltas) -> Tensor:
    """The derivatives `[K, n, size]`, where what is used may have been made of the parameter."""
    moving = _moving(route, p, backs)
    if route.use.read is None:
        made = moving.sum(2)
    else:
        fixed = _fixed(route, p)
        sides = (moving, fixed) if route.use.left else (fixed, moving)
        made = rows([Outer(*sides, route.use.groups)], (route.shape[0], math.prod(route.shape[1:])))
    return torch.stack([_through(route.chain, some, route.shape) for some in made]) if route.chain else made


def _through(chain: Sequence[Link], made: Tensor, shape: tuple[int, ...]) -> Tensor:
    """From derivatives `[n, size]` by what is used, of a shape, to those by the parameter that it was made of."""
    for link in reversed(chain):
        node: Any = link.step.node  # of one output, so that it can be called as it stands
        found = [node(row.view(shape)) for row in made]
        mine = [g[link.step.place] if isinstance(g, tuple) else g for g in found]
        made, shape = torch.stack([g.sum_to_size(link.shape).flatten() for g in mine]), link.shape
    return made


def _turned(route: Route, p: Tensor) -> bool | None:
    return turned([link.step for link in route.chain], p)


def _moving(route: Route, p: Tensor, backs: Deltas) -> Tensor:
    """What comes back, `[K, n, T, d]`."""
    deltas = backs[route.step.node]
    assert deltas is not None
    return _float(route.places.arrange(route.use.back(deltas).detach()), p)


def _fixed(route: Route, p: Tensor) -> Tensor:
    """What a matrix read, `[n, T, d]`, or numbers of its rows, `[n, T]`."""
    assert route.use.read is not None
    read = route.places.arrange(route.use.read().detach().unsqueeze(0)).squeeze(0)
    return _float(read, p) if read.is_floating_point() else read


def _float(x: Tensor, p: Tensor) -> Tensor:
    """In the type of the parameter, but float32 at least."""
    return x.to(p.dtype if p.itemsize >= 4 else torch.float32)


def _is_bias(route: Route) -> bool:
    """Whether what comes back to a product is the derivative by this as it stands."""
    node: Any = route.step.node
    return kind(node) == "Addmm" and route.step.place == 0 and not route.chain and node._saved_beta == 1
