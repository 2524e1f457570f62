"""`tangent_kernel`: how a network of finite width sees data, as a kernel; `tangent_operator`: only its spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from layerwright.core.tangent.kernel import TangentKernel
    from layerwright.core.tangent.operator import TangentOperator

MEMORY = 2**30


def tangent_kernel(
    model: nn.Module,
    inputs: Any,
    inputs2: Any = None,
    *,
    outputs: Literal["full", "each", "trace", "projection"] = "full",
    diagonal: bool = False,
    by_layer: bool = False,
    parameters: Sequence[str] | None = None,
    read: Callable[[Any], Any] | None = None,
    projections: int = 8,
    seed: int = 0,
    memory: int = MEMORY,
) -> TangentKernel:
    """The tangent kernel of a network as it is: inner products of the derivatives of its outputs by its parameters.

        Θ[i, j, o, o′] = Σ_θ ∂f_o(x_i)/∂θ · ∂f_o′(x_j)/∂θ

    Where a matrix of weights is used at few places, the derivatives are not made: with a what the matrix reads and δ
    the derivative by what it gives, Θ = Σ (a_i · a_j)(δ_io · δ_jo′). Elsewhere they are, whichever takes fewer
    operations. Uses are read off the graph of autograd, so that tied weights, modules that run several times and
    functions without a module count in full; what is used in a way that is not known has its derivatives from autograd,
    input by input. The model runs in evaluation mode, in its own floating-point type, and is left as it was.

    Memory: the result, which is `[N, M, O, O]`, `[N, M, O]` or `[N, M]`, times the number of layers with `by_layer`;
    beside it, and beside the model, about `memory` bytes, but at least two sets of derivatives of one output for one
    input, and the graph of one call with one input. With less memory more is computed twice.

    Args:
        model: any module. Parameters that are frozen do not count.
        inputs: N of them, as the model is called with: a tensor, an array, a tuple, or a dict of named ones.
        inputs2: M others; left out, the same.
        outputs: `full` for all pairs of outputs; `each` for every output with itself; `trace` for the mean of those;
            `projection` for an estimate of that mean, from combinations of outputs with random signs, of which each
            costs as much as one output.
        diagonal: only each input with itself (with `inputs2`, the n-th with the n-th).
        by_layer: also the part of each layer's parameters, by its path.
        parameters: names of parameters or of modules that hold them, or patterns (`*.bias`); frozen ones count too.
        read: takes the outputs, `[n, …]`, from what the model returns; left out, its logits, or the first tensor.
        projections: how many combinations.
        seed: draws their signs.
        memory: bytes.

    Returns:
        the kernel with `values`, `layers`, and for a projection `error`, its standard error; and what is read off it:
        `matrix()`, `eigenvalues()`, `effective_rank()`, `alignment(targets)`, `similarity(other)`.

    Raises:
        UserError: the model or the inputs cannot be used, outputs have no derivative or are NaN, outputs for an input
            depend on the inputs beside it, or the result is larger than the memory there is.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> tangent_kernel(layer, torch.eye(2)).matrix()  # x · x′, and 1 for the bias
        tensor([[2., 1.],
                [1., 2.]], dtype=torch.float64)

    Reference: arXiv 1806.07572; 2206.08720 for factors.
    """
    from layerwright.core.tangent import computation
    from layerwright.core.tangent.model import logits

    choice = computation.Choice(outputs, diagonal, by_layer, parameters, projections, seed, memory)
    return computation.tangent_kernel(model, inputs, inputs2, choice, read or logits)


def tangent_operator(
    model: nn.Module,
    inputs: Any,
    *,
    parameters: Sequence[str] | None = None,
    read: Callable[[Any], Any] | None = None,
    memory: int = MEMORY,
) -> TangentOperator:
    """The tangent kernel of all inputs and outputs by its products with vectors, for kernels too large to be made.

    A product costs some five passes over the data. Rows and columns are those of `tangent_kernel(...).matrix()`.

    Args:
        model: any module, of plain operations that can be differentiated twice.
        inputs: as in `tangent_kernel`; so are the others.
        parameters: whose derivatives count.
        read: takes the outputs.
        memory: bytes for graphs, but at least those of one input.

    Returns:
        an operator with `size`, `product(v)`, `largest(count)`, `trace(probes)` with its standard error, and
        `linear_operator()` for scipy.

    Raises:
        UserError: as in `tangent_kernel`, or a part of the model has no second derivative.

    Example:
        >>> import torch
        >>> tangent_operator(torch.nn.Linear(2, 1), torch.eye(2)).largest(2)
        tensor([3., 1.], dtype=torch.float64)
    """
    from layerwright.core.tangent.model import logits
    from layerwright.core.tangent.operator import TangentOperator

    return TangentOperator(model, inputs, parameters, read or logits, memory)
