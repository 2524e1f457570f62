"""Towers that read images: from the words up to the readout of positions to kernels of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.memory import available_memory
from layerwright.maths import convolution_kernel
from layerwright.maths.activation import Activation
from layerwright.maths.convolution_layers import Branch, Convolution, Layer, Nonlinearity, Normalization
from layerwright.maths.kernel import Kernels, State
from layerwright.theories.grammar import flat, reads
from layerwright.theories.words import Act, Conv, Norm, Pool, Residual, Word

# Numbers that an activation without a closed form keeps for each position, typically.
_SERIES = 131
_HALVES = 16
_GB = 2**30


@dataclass(frozen=True)
class SampledKernels:
    """Kernels of a tower from a sample: of displacements between positions, or of the scores of attention.

    Attributes:
        kernels: the estimates.
        nngp_error: standard error of each entry of the covariance, `[N, M]`.
        ntk_error: the same of the tangent kernel. Errors of entries are nearly common to all: a scale.
        share: of the work of all displacements that the sample took; 1 where scores were drawn.
    """

    kernels: Kernels
    nngp_error: Tensor
    ntk_error: Tensor
    share: float


def image_kernels(words: Sequence[Word], x: Any, x2: Any, dtype: torch.dtype, by_layer: bool) -> State:
    """The kernels that words up to a readout, which is the last, make of images.

    Raises:
        UserError: inputs that are no images of one size, or whose kernels take more memory than there is.
        ValueError: images smaller than a filter, or what an activation says.
    """
    first, second = _images(x, x2, dtype)
    _check_memory(words, first, second, by_layer, copies=1)
    read = convolution_kernel.pooled if isinstance(words[-1], Pool) else convolution_kernel.flattened
    return read(_layers(words[:-1]), first, second, by_layer)


def sampled_kernels(
    words: Sequence[Word], x: Any, x2: Any, dtype: torch.dtype, share: float, seed: int,
    fold: Callable[[State, Sequence[Word]], Kernels],
) -> SampledKernels:  # fmt: skip
    """The kernels of a tower from a sample of displacements.

    Args:
        words: of the tower.
        x: first images.
        x2: second images, or None.
        dtype: to work in.
        share: of the work.
        seed: of the draw.
        fold: what words after the readout make of kernels.

    Raises:
        UserError: as in `image_kernels`, the tower has no `Pool` or an activation after it, or the share is none.
    """
    end = next((k for k, word in enumerate(words) if isinstance(word, Pool)), None)
    if end is None or reads(words) != "images":
        raise UserError("got a tower without Pool; expected one that averages over positions of images: call kernel")
    words, rest = words[:end], words[end + 1 :]
    if any(isinstance(word, Act) for word in flat(rest)):
        raise UserError("got Act after Pool, which an estimated covariance need not fit; expected none: call kernel")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"got share={share}; expected a number above 0 and up to 1")
    first, second = _images(x, x2, dtype)
    _check_memory(words, first, second, False, copies=1 + _HALVES)
    found = convolution_kernel.sampled(_layers(words), first, second, share=share, halves=_HALVES, seed=seed)
    whole, *halves = (fold(part, rest) for part in (found.kernels, *found.halves))

    def error(part: str) -> Tensor:
        return torch.stack([getattr(half, part) - getattr(whole, part) for half in halves]).square().mean(0).sqrt()

    return SampledKernels(whole, error("nngp"), error("ntk"), found.share)


def _layers(words: Sequence[Word]) -> list[Layer]:
    return [_layer(word) for word in words]


def _layer(word: Word) -> Layer:
    match word:
        case Conv():
            return Convolution(word.size, word.weight_variance, word.bias_variance, word.padding)
        case Act():
            assert isinstance(word.activation, Activation)
            return Nonlinearity(word.activation)
        case Norm():
            return Normalization(word.eps)
        case Residual():
            return Branch(_layers(word.words), word.scale)
    raise AssertionError(f"{word} on images")


def _images(x: Any, x2: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"got dtype={dtype}; expected torch.float32 or torch.float64")
    first, second = _read(x, dtype), None if x2 is None else _read(x2, dtype)
    for images in (first, second):
        if images is not None and (images.ndim != 4 or 0 in images.shape):
            raise UserError(
                f"got inputs {tuple(images.shape)}; expected images [N, C, H, W], grey ones with one channel"
            )
        if images is not None and not images.isfinite().all():
            raise UserError("got images that are NaN or infinite; expected finite numbers: leave those out")
    if second is not None and first.shape[1:] != second.shape[1:]:
        sizes = ["×".join(map(str, images.shape[1:])) for images in (first, second)]
        raise UserError(f"got images {sizes[0]} and {sizes[1]}; expected one number of channels and one size for both")
    return first, second


def _check_memory(words: Sequence[Word], x: Tensor, x2: Tensor | None, by_layer: bool, copies: int) -> None:
    n, m = len(x), len(x if x2 is None else x2)
    found = flat(words)
    series = [
        isinstance(word.activation, Activation) and not word.activation.closed
        for word in found
        if isinstance(word, Act)
    ]
    known = x.shape[1] + sum(_SERIES if long else 1 for long in series) + sum(isinstance(word, Norm) for word in found)
    kernels = 1 + (sum(isinstance(word, Conv) for word in found) if by_layer else 1)
    positions = x[0, 0].numel() * (n + (0 if x2 is None else m))
    needed = 2 * x.itemsize * known * positions + 8 * (copies + 3 * torch.get_num_threads()) * kernels * n * m
    if needed > (free := available_memory()):
        raise UserError(
            f"got {n} × {m} images, whose kernels take {needed / _GB:.1f} GB; expected at most {free / _GB:.1f} GB, "
            "which are free: take fewer at a time, as in kernel(x[:100], x)"
        )


def _read(x: Any, dtype: torch.dtype) -> Tensor:
    try:
        found = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"got images that are no array: {error}") from None
    if found.is_complex():
        raise UserError("got complex images; expected real numbers")
    return found.detach().to(dtype)
