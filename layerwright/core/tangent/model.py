"""A model made ready for derivatives by chosen parameters, and inputs and outputs as these need them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, on_device
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.registry import nearest
from layerwright.core.sharded import is_sharded
from layerwright.core.trace import first_tensor


@contextmanager
def differentiable(model: nn.Module, names: Sequence[str] | None) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """The model in evaluation mode with gradients by the chosen parameters only; everything is put back.

    Args:
        model: any module.
        names: of parameters, of modules that hold them, or patterns as `*.bias`; None for all that are not frozen.

    Raises:
        UserError: a name fits none, or there is nothing to choose from.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"got a model of type {type(model).__name__}; expected a torch module")
    model = unwrap(model)
    chosen = _chosen(model, names)
    with undisturbed(model), torch.enable_grad():
        try:
            for p in chosen.values():
                p.requires_grad_(True)
            yield model, chosen
        finally:
            for p in chosen.values():
                p.requires_grad_(False)


def given(inputs: Any, model: nn.Module) -> Inputs:
    """Inputs as tensors where the model is; numbers in floating point in the model's own type.

    Raises:
        UserError: they are no tensor, array, tuple or mapping of those, or there are none.
    """
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    own = kinds.pop() if len(kinds) == 1 else None

    def made(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
            x = torch.from_numpy(np.ascontiguousarray(x))
        if not isinstance(x, Tensor):
            return x
        x = x.detach().clone() if x.is_inference() else x.detach()
        return x.to(own) if x.is_floating_point() and own is not None else x

    if isinstance(inputs, Mapping):
        found: Any = {key: made(x) for key, x in inputs.items()}
    elif isinstance(inputs, tuple):
        found = tuple(made(x) for x in inputs)
    else:
        found = made(inputs)
        if not isinstance(found, Tensor):
            raise UserError(
                f"got inputs of type {type(inputs).__name__}; expected a tensor, an array, or a tuple or dict of those"
            )
    if batch_size(found) == 0:
        raise UserError("got no inputs; expected one or more")
    return on_device(found, model)


def logits(output: Any) -> Any:
    """The logits of what a model returned, or the first tensor."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return named if isinstance(named, Tensor) else first_tensor(output)


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    there: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if any(map(is_sharded, there.values())):
        raise UserError("the weights are spread over processes; a tangent kernel needs a model that one process holds")
    if names is None:
        trained = {name: p for name, p in there.items() if p.requires_grad}
        if not trained:
            raise UserError(
                f"the model has {len(there)} parameters in floating point, none of which is trained; expected some; "
                "name frozen ones with parameters="
            )
        return trained
    chosen: dict[str, Tensor] = {}
    patterns = [names] if isinstance(names, str) else names
    if not (isinstance(patterns, Iterable) and all(isinstance(pattern, str) for pattern in patterns)):
        raise UserError(f"got parameters={names!r}; expected names of parameters, as in ['*.bias']")
    for pattern in patterns:
        fits = {n: p for n, p in there.items() if n.startswith(f"{pattern}.") or fnmatch.fnmatchcase(n, pattern)}
        if not fits:
            raise UserError(f"no parameter is named {pattern!r}; did you mean {nearest(pattern, there)!r}?")
        chosen |= fits
    if not chosen:
        raise UserError("got no names of parameters; expected some, or None for all that are trained")
    return {name: p for name, p in there.items() if name in chosen}
