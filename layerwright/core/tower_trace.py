"""One call of a network as a graph of the elementary functions of torch."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, call
from layerwright.core.trace import first_tensor, tensors


def no_tower(why: str) -> UserError:
    """What to say of a network that theory does not match."""
    return UserError(
        f"theory does not match this network: {why}; expected dense layers, with elementwise activations, norms and "
        "residual sums between them"
    )


def traced(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The call as a graph of functions of the tensors in its inputs; steps in place and views are made plain.

    Raises:
        UserError: the call does more than that.
    """

    def run(*given: Tensor) -> Tensor | None:
        new = iter(given)

        def put(x: Any) -> Any:
            if isinstance(x, Tensor):
                return next(new)
            if isinstance(x, dict) or hasattr(x, "items"):
                return {key: put(value) for key, value in x.items()}
            return type(x)(map(put, x)) if isinstance(x, (tuple, list)) else x

        return first_tensor(call(model, put(inputs)))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make_fx(functionalize(run))(*tensors(inputs))
    except Exception as error:
        if "tracing tensor" in str(error):
            raise no_tower("a number is read out of the data, by item(), bool() or the like") from error
        raise no_tower(f"its call cannot be followed function by function ({_first_line(error)})") from error


def answer(model: nn.Module, inputs: Inputs) -> Tensor | None:
    """What the network gives, its first tensor.

    Raises:
        UserError: it cannot be called.
    """
    try:
        return first_tensor(call(model, inputs))
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise UserError(
            f"the network cannot be called on these inputs ({_first_line(error)}); expected a batch as it takes it"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
