"""The gradient of a weight matrix without the matrix: what its inputs and the derivatives at its outputs say."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.maths.spectrum import singular_values


class MatrixGradient:
    """The gradients G_b = Δ_bᵀ X_b of one weight matrix, one for each of B samples, out of token factors.

    Nothing of the matrix's own size is made unless it is smaller than the factors.
    """

    def __init__(self, inputs: Tensor, deltas: Tensor, gram: Tensor | None = None, dense: Tensor | None = None) -> None:
        """Factors of B samples of T tokens; a token that does not count has a zero row in `deltas`.

        Args:
            inputs: X, what the matrix read, `[B, T, i]`.
            deltas: Δ, the derivative of each sample's loss by what it gave, `[B, T, o]`.
            gram: X Xᵀ in float64 `[B, T, T]`, where several matrices read the same inputs.
            dense: the gradients in float64 `[B, o, i]`, where they are known.
        """
        self.inputs, self.deltas, self._gram, self._dense = inputs, deltas, gram, dense
        self._square: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.deltas.shape[-1], self.inputs.shape[-1]

    @property
    def full(self) -> bool:
        """Whether the gradient may have full rank: there are as many tokens as the smaller side."""
        return self.inputs.shape[1] >= min(self.shape)

    @property
    def wide(self) -> bool:
        """Whether the factors are larger than the matrix."""
        rows, columns = self.shape
        return self.inputs.shape[1] * (rows + columns) >= rows * columns

    def dense(self) -> Tensor:
        """The gradients themselves, `[B, o, i]`, float64; kept where they are smaller than the factors."""
        if self._dense is not None:
            return self._dense
        made = self.deltas.double().mT @ self.inputs.double()
        if self.wide:
            self._dense = made
        return made

    def values(self) -> Tensor:
        """Singular values of each gradient, largest first, `[B, min(T, o, i)]`, float64.

        Of X Xᵀ = L Lᵀ and Δ Δᵀ, both tokens × tokens, σ² are the eigenvalues of Lᵀ (Δ Δᵀ) L: 2T²(o + i) operations
        instead of 2Toi and an SVD of the matrix. In float64 they are right to 1e-8 of the largest, better than an SVD
        in float32. NaN where a factor is not finite.

        Example:
            >>> x, delta = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
            >>> MatrixGradient(x, delta).values()
            tensor([[6.]], dtype=torch.float64)
        """
        if not len(self.inputs):
            return self.deltas.new_zeros(0, min(self.inputs.shape[1], *self.shape), dtype=torch.float64)
        dense = self.dense() if self.full else None
        # Of what is not finite nothing can be said, and LAPACK would raise. A sum is finite unless some number is not.
        finite = (_sums(self.inputs) + _sums(self.deltas) if dense is None else _sums(dense)).isfinite()
        if finite.all():
            return self._finite_values()
        values = torch.full((len(finite), min(self.inputs.shape[1], *self.shape)), torch.nan).double()
        for b in finite.nonzero().flatten().tolist():
            values[b] = self.of(slice(b, b + 1))._finite_values()[0].cpu()
        return values.to(self.inputs.device)

    def _finite_values(self) -> Tensor:
        if self.full:
            return singular_values(self.dense())
        delta = self.deltas.double()
        root = _root(input_gram(self.inputs) if self._gram is None else self._gram)
        core = root.mT @ (delta @ delta.mT) @ root
        return torch.linalg.eigvalsh(core).clamp_min(0.0).sqrt().flip(-1)

    def product(self, other: MatrixGradient) -> Tensor:
        """Frobenius inner product with the gradients of another matrix of the same shape: Σ (Δ Δ'ᵀ) ∘ (X X'ᵀ), `[B]`.

        Example:
            >>> one = MatrixGradient(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[2.0]]]))
            >>> one.product(one)
            tensor([40.], dtype=torch.float64)
        """
        if not len(self.inputs):
            return self.deltas.new_zeros(0, dtype=torch.float64)
        if self.wide or other.wide:
            return torch.linalg.vecdot(self.dense().flatten(1), other.dense().flatten(1))
        if self._gram is not None and self._gram is other._gram:  # of one tensor that both read
            inputs = self._gram
        else:
            inputs = self.inputs.double() @ other.inputs.double().mT
        return (self.deltas.double() @ other.deltas.double().mT * inputs).sum((-2, -1))

    def cosine(self, other: MatrixGradient) -> tuple[Tensor, Tensor]:
        """The same over both lengths, `[B]`, in [-1, 1], and where it is defined: neither gradient is zero."""
        lengths = (self.square() * other.square()).sqrt()
        cosine = self.product(other) / lengths.clamp_min(torch.finfo(torch.float64).tiny)
        return cosine.clamp(-1.0, 1.0), ~(lengths == 0)

    def square(self) -> Tensor:
        """‖G‖² of each sample, `[B]`."""
        if self._square is None:
            self._square = self.product(self).clamp_min(0.0)
        return self._square

    def of(self, samples: slice) -> MatrixGradient:
        """Those of some samples; what is kept of the whole is theirs too."""
        if samples.indices(len(self.inputs)) == (0, len(self.inputs), 1):
            return self
        gram, dense, square = (None if x is None else x[samples] for x in (self._gram, self._dense, self._square))
        found = MatrixGradient(self.inputs[samples], self.deltas[samples], gram, dense)
        found._square = square
        return found

    def last(self) -> MatrixGradient:
        """That of the last sample alone, for later."""
        return MatrixGradient(self.inputs[-1:].clone(), self.deltas[-1:].clone())


def input_gram(inputs: Tensor) -> Tensor:
    """X Xᵀ in float64, `[B, T, T]`."""
    x = inputs.double()
    return x @ x.mT


def _sums(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1, dtype=torch.float64)


def _root(gram: Tensor) -> Tensor:
    """L with L Lᵀ = K: Cholesky's where K is definite, else that of the eigenvalues, as where tokens are alike."""
    root, failed = torch.linalg.cholesky_ex(gram)
    if not failed.any():
        return root
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
