"""A tower written once, as the kernels of its infinite width and as the network of a finite one, side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.progress import bars
from layerwright.maths.kernel import Kernels, State
from layerwright.theories.grammar import check, reads
from layerwright.theories.image_towers import SampledKernels, image_kernels, sampled_kernels
from layerwright.theories.kernel_files import write_kernels
from layerwright.theories.ntk_modules import modules
from layerwright.theories.row_kernels import as_type, row_kernels, row_plan, way
from layerwright.theories.sequence_towers import drawn_kernels, sequence_kernels
from layerwright.theories.steps import step
from layerwright.theories.words import Act, Attention, Conv, Dense, Dropout, Flatten, Norm, Pool, Residual, Word

__all__ = [
    "Act",
    "Attention",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "Norm",
    "Pool",
    "Residual",
    "Tower",
    "Word",
    "tower",
]


@dataclass(frozen=True)
class Tower:
    """A tower of `tower`.

    Attributes:
        words: its layers, from the input on; the last is the dense layer of the outputs.
    """

    words: tuple[Word, ...]

    def kernel(self, x: Tensor, x2: Tensor | None = None, *, dtype: torch.dtype = torch.float64) -> Kernels:
        """Both kernels of an output at infinite width.

        Many rows take a shorter way than the layers, whatever their depth: polynomials in the correlation of two inputs
        where all but few correlations stay away from ±1, else a table of the angle between them where all rows have one
        norm or the tower is homogeneous. Where neither holds, all layers are worked out on one tile of the pairs after
        another.

        Args:
            x: inputs `[N, d]`, a tensor or an array of any real type; images `[N, C, H, W]` or sequences
                `[N, T, d]` where the words read them.
            x2: second inputs `[M, …]`; left out, the first.
            dtype: of the kernels. In float64 they are exact to rounding; in float32 to 1e-5 of the largest entry, in
                half the memory and a fraction of the time.

        Raises:
            UserError: inputs of another shape, that are not finite, whose signal overflows, or whose kernels do not fit
                in memory.
        """
        return self._kernels(x, x2, by_layer=False, dtype=dtype)

    def way(self, x: Tensor, x2: Tensor | None = None, *, dtype: torch.dtype = torch.float64) -> str:
        """How `kernel` works out these rows.

        Returns:
            "polynomials" where kernels are polynomials in the correlation of two inputs, and of low rank in their
            norms, but for the few pairs near ±1; "table" where they are looked up by the angle between two inputs;
            "tiles" where neither holds, as correlations come near ±1 or inputs are too few, norms differ and the tower
            is not homogeneous, so that all layers are worked out for each pair; "at once" for so few pairs that no
            other way is shorter.

        Raises:
            UserError: as in `kernel`, or a tower that reads images or sequences.

        Example:
            >>> x, made = torch.arange(300.0)[:, None], tower([Dense(2.0), Act("relu"), Dense()])
            >>> made.way(x), tower([Dense(2.0, 0.1), *made.words[1:]]).way(x), made.way(x[:3])
            ('table', 'tiles', 'at once')
        """
        self._check_rows("take kernel(x)")
        with in_one_line(TypeError, ValueError):
            return way(self._fold, x, x2, dtype)

    def kernel_to(
        self,
        folder: str | Path,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        jobs: str | int = "serial",
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both kernels of rows, written to `nngp.npy` and `ntk.npy`: for more inputs than memory holds pairs of.

        Memory is that of the inputs and of some tiles. A run that was stopped goes on where it was, if it is started
        again with the same tower, inputs and folder.

        Args:
            folder: where to; made if it is not there.
            x: inputs `[N, d]`.
            x2: second inputs `[M, d]`; left out, the first.
            dtype: of the kernels, as in `kernel`.
            jobs: `serial`, or a number of local workers (`auto`: one a core).
            progress: show a progress bar.

        Returns:
            the covariance and the tangent kernel, mapped into memory to be read.

        Raises:
            UserError: inputs as in `kernel`, a tower that reads images, or a folder that cannot be written or has too
                little space.
        """
        if not isinstance(folder, str | os.PathLike):
            raise UserError(f"got {type(folder).__name__} as the folder; expected a path, then the inputs")
        self._check_rows("take kernel(x[:100], x)")
        with in_one_line(TypeError, ValueError):
            plan = row_plan(self._fold, x, x2, dtype)
        with bars(progress) as shown:
            return write_kernels(plan, Path(folder), dtype, jobs, partial(shown, "kernels"))

    def split(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        """The tangent kernel of each `Dense`, `Conv` and `Attention`, `[layers, N, M]`, from the input on.

        T is their sum.

        Raises:
            UserError: as in `kernel`.
        """
        return self._kernels(x, x2, by_layer=True, dtype=torch.float64).ntk

    def network(self, inputs: int | Sequence[int], width: int, outputs: int = 1, seed: int = 0) -> nn.Sequential:
        """A finite network of this tower, at initialisation.

        Args:
            inputs: columns of its inputs, d; channels, height and width of images; tokens and numbers of sequences.
            width: units, or channels, of each hidden layer.
            outputs: of the last layer.
            seed: of the draw.

        Returns:
            a module of `NTKLinear`, `NTKConv`, `NTKAttention` and what stands between, in torch's default type, in
            training mode.

        Raises:
            UserError: sizes that are not whole numbers from 1 on, or images smaller than a filter.

        Example:
            >>> net = tower([Dense(2.0), Act("relu"), Dense()]).network(inputs=3, width=8, outputs=2)
            >>> net(torch.ones(5, 3)).shape
            torch.Size([5, 2])
        """
        shape = tuple(inputs) if isinstance(inputs, Sequence) else (inputs,)
        sizes: list[Any] = [*shape, width, outputs]
        if not all(isinstance(n, Integral) and int(n) >= 1 for n in sizes):
            raise UserError(f"got inputs={inputs}, width={width}, outputs={outputs}; expected whole numbers from 1 on")
        expected = {"rows": "a number", "sequences": "tokens and their numbers", "images": "channels, height and width"}
        if not isinstance(seed, int):
            raise UserError(f"got seed={seed!r}; expected a whole number")
        if len(shape) != 1 + list(expected).index(self.reads):
            raise UserError(f"got inputs={inputs}; expected {expected[self.reads]}")
        if self.reads == "sequences":
            shape = shape[::-1]
        with in_one_line(ValueError):
            return modules(self.words, shape, width, outputs, torch.Generator().manual_seed(seed))

    def sampled(
        self, x: Tensor, x2: Tensor | None = None, *, share: float = 0.1, seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> SampledKernels:  # fmt: skip
        """Both kernels of a tower with `Pool`, estimated from a sample of displacements between positions.

        The sample is the same for all pairs of images: two displacements from each cell of neighbours, drawn with
        probability ~ overlap, and that of 0. Its error is mostly a scale that all entries share.

        Args:
            x: images `[N, C, H, W]`.
            x2: second images; left out, the first.
            share: of the work of all displacements, above 0 and up to 1; what it came to is in the result.
            seed: of the draw.
            dtype: as in `kernel`.

        Raises:
            UserError: as in `kernel`, there is no `Pool`, an activation after it (which an estimate does not fit, as it
                need not be a covariance), or the share is none.

        Example:
            >>> made = tower([Conv(3, 2.0), Act("relu"), Pool(), Dense()])
            >>> found = made.sampled(torch.ones(1, 1, 8, 8), share=0.2)
            >>> bool((found.kernels.ntk - made.kernel(torch.ones(1, 1, 8, 8)).ntk).abs() < 4 * found.ntk_error)
            True
        """
        with in_one_line(TypeError, ValueError):
            return sampled_kernels(
                self.words, x, x2, dtype, share, seed, lambda start, words: as_type(reduce(step, words, start), dtype)
            )

    def drawn(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        draws: int = 3200,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> SampledKernels:
        """Both kernels of a tower whose attention has no closed form, averaged over draws of its Gaussian scores.

        The draws are of all tokens at once, so that every estimate is a covariance; sixteen runs give the errors. After
        an attention that was drawn, kernels are off by their errors' squares, and so nearly unbiased.

        Args:
            x: sequences `[N, T, d]`.
            x2: second sequences; left out, the first.
            draws: of the scores, in all runs together.
            seed: of the draws.
            dtype: of the kernels.

        Raises:
            UserError: as in `kernel`, no attention is softmax over √d, or the draws are too few.

        Example:
            >>> made = tower([Attention(scaling="1/sqrt(d)"), Pool(), Dense()])
            >>> found = made.drawn(torch.eye(3).reshape(1, 3, 3), draws=320)
            >>> bool(found.ntk_error < 0.1 * found.kernels.ntk)
            True
        """
        with in_one_line(TypeError, ValueError):
            return drawn_kernels(
                self.words, x, x2, draws, seed, lambda n, g: partial(step, draws=n, generator=g), dtype
            )

    @property
    def reads(self) -> str:
        """What the tower reads: "rows", "images" or "sequences"."""
        return reads(self.words)

    @property
    def readout(self) -> int | None:
        """Which word reads out positions, where the tower reads images or sequences."""
        return next((k for k, word in enumerate(self.words) if isinstance(word, Flatten | Pool)), None)

    def _check_rows(self, advice: str) -> None:
        if self.readout is not None:
            raise UserError(f"got a tower that reads {self.reads}; expected one that reads rows: {advice}")

    def _kernels(self, x: Tensor, x2: Tensor | None, by_layer: bool, dtype: torch.dtype) -> Kernels:
        with in_one_line(TypeError, ValueError):
            if self.readout is None:
                return row_kernels(self._fold, x, x2, dtype, by_layer)
            if self.reads == "sequences":
                return as_type(sequence_kernels(self.words, x, x2, by_layer, step), dtype)
            start = image_kernels(self.words[: self.readout + 1], x, x2, dtype, by_layer)
            return as_type(reduce(step, self.words[self.readout + 1 :], start), dtype)

    def _fold(self, start: State) -> State:
        return reduce(step, self.words, start)


def tower(words: Sequence[Word]) -> Tower:
    """A tower as its kernels at infinite width and as the network of a finite width, from the same words.

    The kernels are those of any one output of `network` as its width goes to infinity: `nngp` the covariance of the
    output over draws of the parameters, `ntk` the inner product of its gradients by all of them.

    A tower of images has `Conv` in place of `Dense` up to `Flatten` or `Pool`. Units at two positions have a covariance
    of their own; `Pool` asks for those of all pairs, so that it takes as much longer as an image has pixels. A tower of
    sequences has `Attention`.

    Args:
        words: `Dense`, `Act`, `Norm`, `Dropout` and `Residual` from the input on. An activation reads Gaussian units:
            it follows a dense layer, a sum of those, or the norm of one. A residual stream, too, begins with a dense
            layer, and each branch ends in one, as does the tower. Of images: `Conv`, `Act`, `Norm` and `Residual`, of
            sequences `Attention` beside all words of rows; then one `Flatten` or `Pool`, and then as above.

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
        >>> images = tower([Conv(3, 2.0), Act("relu"), Pool(), Dense()])
        >>> images.kernel(torch.ones(1, 1, 3, 3)).nngp < images.kernel(2 * torch.ones(1, 1, 3, 3)).nngp
        tensor([[True]])

    Reference: arXiv 1806.07572, arXiv 1904.11955, arXiv 2006.10540.
    """
    if not isinstance(words, Sequence):
        raise UserError(f"got {type(words).__name__} as words of a tower; expected a list, as in [Dense()]")
    made = Tower(tuple(words))
    check(made.words)
    return made
