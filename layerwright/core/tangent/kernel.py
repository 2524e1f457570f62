"""What is read off a tangent kernel: how it fits targets, how it compares with another, how many directions it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.maths.kernel_alignment import centred_alignment, target_alignment
from layerwright.maths.spectrum import effective_rank


@dataclass(frozen=True)
class TangentKernel:
    """A tangent kernel.

    Attributes:
        values: by the choice of outputs: `full` `[N, M, O, O]`, `each` `[N, M, O]`, `trace` and `projection` `[N, M]`;
            of each input with itself only, without M.
        outputs: that choice.
        layers: the part of each layer's parameters, by the layer's path, where that was asked for.
        error: standard error of a projection.
    """

    values: Tensor
    outputs: str
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    error: Tensor | None = None

    def matrix(self) -> Tensor:
        """Rows and columns of inputs, or of inputs and outputs, `[N · O, M · O]`; float64.

        Raises:
            UserError: it is no one matrix, but one for each output, or a diagonal.
        """
        x = self.values.double()
        if x.ndim == 4:
            return x.transpose(1, 2).flatten(2).flatten(0, 1)
        if x.ndim != 2 or self.outputs == "each":
            raise UserError(
                f"got a kernel {tuple(x.shape)} of outputs={self.outputs!r}; expected one matrix; ask for 'full', "
                "'trace' or 'projection', and all pairs of inputs"
            )
        return x

    def alignment(self, targets: Any) -> float:
        """How far the kernel is that of the targets: ⟨K, Y Yᵀ⟩ / (‖K‖ ‖Y Yᵀ‖), 1 where K = Y Yᵀ.

        Args:
            targets: `[N]` or `[N, C]`, numbers; whole numbers `[N]` are classes. Their mean is taken off.

        Raises:
            UserError: they do not fit the kernel of one set of inputs without a pair of outputs.
        """
        return target_alignment(self._of_inputs(), _columns(targets, len(self.values)))

    def similarity(self, other: TangentKernel) -> float:
        """Centred alignment with another kernel of the same inputs, in [0, 1] for kernels: 1 where one is a multiple.

        Raises:
            UserError: the kernels are of different inputs.
        """
        if not isinstance(other, TangentKernel):
            raise UserError(f"got {type(other).__name__}; expected another tangent kernel, of the same inputs")
        a, b = self._of_inputs(), other._of_inputs()
        if a.shape != b.shape:
            raise UserError(f"got kernels {tuple(a.shape)} and {tuple(b.shape)}; expected the same inputs")
        return centred_alignment(a, b)

    def eigenvalues(self) -> Tensor:
        """Of the matrix, largest first, float64; not divided by the number of inputs."""
        return torch.linalg.eigvalsh(self._square(self.matrix())).flip(0)

    def effective_rank(self) -> float:
        """How many eigenvalues count: exp(−Σ p ln p) with p = λ/Σλ."""
        return float(effective_rank(self.eigenvalues().clamp_min(0.0)))

    def _of_inputs(self) -> Tensor:
        """`[N, N]`: the trace over outputs."""
        x = self.values.double()
        if x.ndim == 4:
            x = x.diagonal(dim1=2, dim2=3).mean(-1)
        elif self.outputs == "each":
            x = x.mean(-1)
        return self._square(x)

    def _square(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[0] != x.shape[1]:
            raise UserError(f"got a kernel {tuple(x.shape)}; expected one of all pairs of the same inputs")
        return x


def _columns(targets: Any, n: int) -> Tensor:
    """`[N, C]`, float64; of classes a column each."""
    try:
        y = torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"got targets that are no array of numbers ({error}); expected one row for each input"
        ) from None
    if y.is_complex():
        raise UserError("got complex targets; expected real numbers")
    if y.ndim not in (1, 2) or len(y) != n or not y.numel():
        raise UserError(f"got targets {tuple(y.shape)} for {n} inputs; expected one row, or one number, for each")
    if y.ndim == 1 and not y.is_floating_point():
        y = (y[:, None] == y.unique()).double()
    y = y.reshape(n, -1).double()
    if not y.isfinite().all():
        raise UserError("got targets that are NaN or infinite; expected finite numbers: leave those inputs out")
    if (y == y[0]).all():
        raise UserError("got targets that are the same for all inputs; expected some that vary")
    return y
