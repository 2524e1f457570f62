"""A tangent kernel that is never made, by its products with vectors: its largest eigenvalues and its trace.

A product is a way back and a derivative forwards, the latter as the derivative of a way back: v to J Jᵀ v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerwright.core.errors import UserError
from layerwright.core.inputs import batch_size, rows
from layerwright.core.loss import derivative, differentiating
from layerwright.core.tangent.model import differentiable, given
from layerwright.core.tangent.record import Read, Recorder, Saved
from layerwright.maths import lanczos

# A graph that can be differentiated again holds the way back as well.
_TWICE = 3
# How far a product may be from what is known of it, as a share.
_SAME = 1e-3


class TangentOperator:
    """The tangent kernel of some inputs, `[N · O, N · O]`, outputs innermost.

    Attributes:
        inputs: N.
        outputs: O.
        size: N · O, rows of the matrix.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, parameters: Sequence[str] | None, read: Read, memory: int
    ) -> None:
        """Look at one input; see `verbs/tangents.py` for the words."""
        self._model, self._names, self._read = model, parameters, read
        with differentiable(model, parameters) as (module, chosen):
            self._inputs = given(inputs, module)
            saved = Saved(module.parameters())
            with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda x: x):
                f = Recorder(module, chosen, read).outputs(rows(self._inputs, slice(0, 1)))
        self.inputs, self.outputs = batch_size(self._inputs), f.shape[1]
        self.size = self.inputs * self.outputs
        self._at_once = max(1, memory // max(1, _TWICE * saved.bytes))

    def product(self, vector: Tensor) -> Tensor:
        """The kernel times a vector `[N · O]`, float64.

        Raises:
            UserError: a part of the model has no second derivative, or the vector does not fit.
        """
        shape = tuple(getattr(vector, "shape", ()))
        if not isinstance(vector, Tensor) or shape != (self.size,) or not vector.isfinite().all():
            kind = type(vector).__name__
            raise UserError(f"got a {kind} {shape} as a vector; expected a tensor of {self.size} finite numbers")
        with self._products() as times:
            return times(vector)

    def largest(self, count: int = 1, seed: int = 0) -> Tensor:
        """The largest eigenvalues, by ARPACK's Lanczos, `[count]`, float64.

        Raises:
            UserError: the count is none.
            ArithmeticError: they did not converge.
        """
        _check_count("count", count)
        with self._products() as times:
            return lanczos.largest(times, self.size, count, seed=seed).values

    def trace(self, probes: int = 8, seed: int = 0) -> tuple[float, float]:
        """Hutchinson's estimate of the trace from random signs, and its standard error; exact up to 256 rows.

        Raises:
            UserError: the number of probes is none.
        """
        _check_count("probes", probes)
        with self._products() as times:
            mean, error = lanczos.with_error(lanczos.traces(times, self.size, probes, seed))
        return float(mean), float(error)

    def linear_operator(self) -> LinearOperator:
        """The same for scipy."""

        def times(v: np.ndarray) -> np.ndarray:
            return self.product(torch.from_numpy(np.array(v, dtype=float).ravel())).numpy()

        return LinearOperator((self.size, self.size), matvec=times, rmatvec=times, dtype=np.float64)

    @contextmanager
    def _products(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Products while the model is ready for them; a single portion's graph is kept from one to the next."""
        starts = range(0, self.inputs, self._at_once)
        with differentiable(self._model, self._names) as (module, chosen), sdpa_kernel(SDPBackend.MATH):
            recorder, weights = Recorder(module, chosen, self._read), list(chosen.values())

            def taped(start: int) -> _Tape:
                part = rows(self._inputs, slice(start, start + self._at_once))
                f = recorder.outputs(part, start)
                # The way back is linear in what it starts with, so that its derivative by that is the way forwards.
                u = torch.zeros_like(f, requires_grad=True)
                return _Tape(f, u, derivative((f * u).sum(), weights, create_graph=True))

            kept = taped(0) if len(starts) == 1 else None

            def times(vector: Tensor) -> Tensor:
                pieces = vector.to(weights[0].device).view(self.inputs, -1).split(self._at_once)
                total = [torch.zeros_like(w) for w in weights]
                for start, v in zip(starts, pieces):
                    f = recorder.outputs(rows(self._inputs, slice(start, start + len(v)))) if kept is None else kept.f
                    for sum_so_far, g in zip(total, derivative((f * v.to(f)).sum(), weights)):
                        sum_so_far += g
                found = []
                for start in starts:
                    tape = taped(start) if kept is None else kept
                    along = torch.stack([(g * w).sum() for g, w in zip(tape.back, total)]).sum()
                    found.append(derivative(along, [tape.u])[0].detach().double().flatten())
                result = torch.cat(found).to(vector.device)
                # vᵀ J Jᵀ v = ‖Jᵀ v‖²; of a part without a second derivative autograd may leave out a share.
                known = sum(float(g.double().square().sum()) for g in total)
                if abs(float(vector.double() @ result) - known) > _SAME * known:
                    raise RuntimeError("no derivative of a derivative")
                return result

            try:
                with differentiating():
                    yield times
            except RuntimeError as error:
                if not any(word in str(error) for word in ("derivative", "double backward", "differentiate twice")):
                    raise
                raise UserError(
                    f"a part of this model has no second derivative ({str(error).splitlines()[0]}); expected plain "
                    "operations of torch; ask for the kernel itself"
                ) from None


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"got {name}={value!r}; expected a whole number from 1 on")


class _Tape(NamedTuple):
    """Outputs, what the way back starts with, and where it ends, with the graph of all."""

    f: Tensor
    u: Tensor
    back: Sequence[Tensor]
