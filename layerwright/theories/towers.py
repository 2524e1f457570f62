"""A tower written once, as the kernels of its infinite width and as the network of a finite one, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.maths import kernel
from layerwright.maths.activation import Activation
from layerwright.maths.kernel import Kernels
from layerwright.theories.ntk_modules import Elementwise, NTKLinear, RMSNorm, Sum
from layerwright.theories.words import Act, Dense, Dropout, Norm, Residual, Word

__all__ = ["Act", "Dense", "Dropout", "Norm", "Residual", "Tower", "Word", "tower"]


@dataclass(frozen=True)
class Tower:
    """A tower of `tower`.

    Attributes:
        words: its layers, from the input on; the last is the dense layer of the outputs.
    """

    words: tuple[Word, ...]

    def kernel(self, x: Tensor, x2: Tensor | None = None) -> Kernels:
        """Both kernels of an output at infinite width, float64.

        Args:
            x: inputs `[N, d]`, a tensor or an array of any real type.
            x2: second inputs `[M, d]`; left out, the first.

        Raises:
            UserError: inputs that are no matrices of one width, that are not finite, or whose signal overflows.
        """
        return self._kernels(x, x2, by_layer=False)

    def split(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        """The tangent kernel of each dense layer's parameters, `[layers, N, M]`, from the input on; T is their sum.

        Raises:
            UserError: as in `kernel`.
        """
        return self._kernels(x, x2, by_layer=True).ntk

    def network(self, inputs: int, width: int, outputs: int = 1, seed: int = 0) -> nn.Sequential:
        """A finite network of this tower, at initialisation.

        Args:
            inputs: columns of its inputs, d.
            width: units of each hidden layer.
            outputs: of the last layer.
            seed: of the draw.

        Returns:
            a module of `NTKLinear` and what stands between, in torch's default type, in training mode.

        Raises:
            UserError: sizes that are not whole numbers from 1 on.

        Example:
            >>> net = tower([Dense(2.0), Act("relu"), Dense()]).network(inputs=3, width=8, outputs=2)
            >>> net(torch.ones(5, 3)).shape
            torch.Size([5, 2])
        """
        if not all(isinstance(n, int) and n >= 1 for n in (inputs, width, outputs)):
            raise UserError(f"got inputs={inputs}, width={width}, outputs={outputs}; expected whole numbers from 1 on")
        generator = torch.Generator().manual_seed(seed)
        hidden, units = _modules(self.words[:-1], inputs, width, generator)
        last, _ = _modules(self.words[-1:], units, outputs, generator)
        return nn.Sequential(*hidden, *last)

    def _kernels(self, x: Tensor, x2: Tensor | None, by_layer: bool) -> Kernels:
        try:
            start = kernel.inputs(_float64(x), None if x2 is None else _float64(x2), by_layer)
            found = reduce(_step, self.words, start)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
        if not (found.nngp.isfinite().all() and found.ntk.isfinite().all()):
            raise UserError("got kernels that overflow; expected finite ones: take smaller variances or fewer layers")
        return found


def tower(words: Sequence[Word]) -> Tower:
    """A tower as its kernels at infinite width and as the network of a finite width, from the same words.

    The kernels are those of any one output of `network` as its width goes to infinity: `nngp` the covariance of the
    output over draws of the parameters, `ntk` the inner product of its gradients by all of them.

    Args:
        words: `Dense`, `Act`, `Norm`, `Dropout` and `Residual` from the input on. An activation reads Gaussian units:
            it follows a dense layer, a sum of those, or the norm of one. A residual stream, too, begins with a dense
            layer, and each branch ends in one, as does the tower.

    Raises:
        UserError: words in an order whose limit this is not.

    Example:
        >>> mlp = tower([Dense(2.0), Act("relu"), Dense()])
        >>> x = torch.eye(2)
        >>> mlp.kernel(x).nngp * torch.pi  # an input's own entry is q/2 · 2; orthogonal ones have 1/(2π)
        tensor([[1.5708, 0.5000],
                [0.5000, 1.5708]], dtype=torch.float64)
        >>> mlp.split(x).shape
        torch.Size([2, 2, 2])

    Reference: arXiv 1806.07572.
    """
    made = Tower(tuple(words))
    _check(made.words, wide=False, gaussian=False)
    return made


def _check(words: tuple[Word, ...], wide: bool, gaussian: bool) -> None:
    """Refuse a word at which the limit is another, for units that are many, and Gaussian, before the first word."""
    if not words or not isinstance(words[-1], Dense):
        raise UserError("got a tower or a branch that does not end with Dense; expected its last word to be Dense()")
    for word in words:
        match word:
            case Dense():
                wide, gaussian = True, True
            case Act() if not gaussian:
                raise UserError(
                    "got Act on units that are not Gaussian; expected Dense, or a Residual or Norm after it"
                )
            case Dropout() | Residual() if not wide:
                raise UserError(f"got {type(word).__name__} on the inputs; expected Dense before it")
            case Act() | Dropout():
                gaussian = False
            case Residual():
                _check(tuple(word.words), wide, gaussian)
            case Norm():
                pass
            case _:
                raise UserError(f"got {type(word).__name__} in a tower; expected Dense, Act, Norm, Dropout or Residual")


def _step(state: Kernels, word: Word) -> Kernels:
    match word:
        case Dense():
            return kernel.dense(word.weight_variance, word.bias_variance)(state)
        case Act():
            assert isinstance(word.activation, Activation)
            return kernel.nonlinear(word.activation)(state)
        case Norm():
            return kernel.norm(word.eps)(state)
        case Dropout():
            return kernel.dropout(word.keep)(state)
        case Residual():
            return kernel.add(state, reduce(_step, word.words, state), scale=word.scale)


def _modules(words: Sequence[Word], inputs: int, width: int, generator: torch.Generator) -> tuple[list[nn.Module], int]:
    """The modules of these words, and how many units they give."""
    made: list[nn.Module] = []
    for word in words:
        match word:
            case Dense():
                made.append(NTKLinear(inputs, width, word.weight_variance, word.bias_variance, generator))
                inputs = width
            case Act():
                assert isinstance(word.activation, Activation)
                made.append(Elementwise(word.activation))
            case Norm():
                made.append(RMSNorm(word.eps))
            case Dropout():
                made.append(nn.Dropout(1 - word.keep))
            case Residual():
                branch, _ = _modules(word.words, inputs, inputs, generator)
                made.append(Sum(nn.Sequential(*branch), word.scale))
    return made, inputs


def _float64(x: Any) -> Tensor:
    found = torch.as_tensor(x)
    return found if found.is_complex() else found.double()
