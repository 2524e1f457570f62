"""Towers that read sequences: kernels of all their tokens among each other, and of the sequences at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.memory import available_memory
from layerwright.maths import attention_kernel
from layerwright.maths.kernel import Kernels, State
from layerwright.theories.grammar import flat
from layerwright.theories.image_towers import SampledKernels
from layerwright.theories.words import Attention, Conv, Dense, Word

# Matrices of all pairs of tokens that a step holds at once.
_HELD = 12
_RUNS = 16
_GB = 2**30
Step = Callable[[State, Word], State]


def sequence_kernels(words: Sequence[Word], x: Any, x2: Any, by_layer: bool, step: Step) -> Kernels:
    """The kernels of a tower.

    Args:
        words: of the tower.
        x: first sequences.
        x2: second sequences, or None.
        by_layer: whether to keep the tangent kernel of each layer apart.
        step: what a word makes of kernels.

    Raises:
        UserError: inputs that are no sequences of one size, or whose kernels take more memory than there is.
        ValueError: inputs that are not finite, or what an activation says.
    """
    first, second = _sequences(x, x2)
    every = first if second is None else torch.cat([first, second])
    _check_memory(words, every, by_layer)
    start: State = attention_kernel.tokens(every, by_layer)
    k = reduce(step, words, start)
    rows, columns = slice(len(first)), slice(None) if second is None else slice(len(first), None)
    return Kernels(k.q1[rows], k.q2[columns], k.nngp[rows, columns], k.ntk[..., rows, columns])


def drawn_kernels(
    words: Sequence[Word], x: Any, x2: Any, draws: int, seed: int, step: Callable[[int, torch.Generator], Step],
    dtype: torch.dtype,
) -> SampledKernels:  # fmt: skip
    """The kernels of a tower whose attention is averaged over draws: the mean of some runs, and their spread.

    Args:
        words: of the tower.
        x: first sequences.
        x2: second sequences, or None.
        draws: of the scores of each attention, in all runs together.
        seed: of the draws.
        step: from draws and their generator to what a word makes of kernels.
        dtype: of the kernels.

    Raises:
        UserError: as in `sequence_kernels`, or draws that are too few.
    """
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 2 * _RUNS:
        raise UserError(f"got draws={draws}; expected a whole number from {2 * _RUNS} on")
    if not any(isinstance(word, Attention) and word.drawn for word in flat(words)):
        raise UserError(
            "got attention whose kernels have a closed form, so that none are drawn; expected a call of kernel"
        )
    generator = torch.Generator().manual_seed(seed)
    found = [sequence_kernels(words, x, x2, False, step(draws // _RUNS, generator)) for _ in range(_RUNS)]

    def over(part: str) -> Tensor:
        return torch.stack([getattr(k, part) for k in found]).to(dtype)

    q1, q2, nngp, ntk = (over(part).mean(0) for part in ("q1", "q2", "nngp", "ntk"))
    nngp_error, ntk_error = (over(part).std(0) / _RUNS**0.5 for part in ("nngp", "ntk"))
    return SampledKernels(Kernels(q1, q2, nngp, ntk), nngp_error, ntk_error, share=1.0)


def _sequences(x: Any, x2: Any) -> tuple[Tensor, Tensor | None]:
    first, second = _read(x), None if x2 is None else _read(x2)
    for given in (first, second):
        if given is not None and (given.ndim != 3 or 0 in given.shape):
            raise UserError(f"got inputs {tuple(given.shape)}; expected sequences [N, T, d] of T tokens each")
    if second is not None and first.shape[1:] != second.shape[1:]:
        raise UserError(
            f"got sequences {tuple(first.shape[1:])} and {tuple(second.shape[1:])}; expected as many tokens, and as "
            "many numbers of each, in both"
        )
    return first, second


def _read(x: Any) -> Tensor:
    try:
        found = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"got sequences that are no array: {error}") from None
    if found.is_complex():
        raise UserError("got complex sequences; expected real numbers")
    return found.detach().double()


def _check_memory(words: Sequence[Word], x: Tensor, by_layer: bool) -> None:
    layers = sum(isinstance(word, Conv | Dense | Attention) for word in flat(words)) if by_layer else 1
    tokens = x.shape[0] * x.shape[1]
    needed = 8 * tokens**2 * (_HELD + 2 * layers)
    if needed > (free := available_memory()):
        raise UserError(
            f"got {tokens} tokens, whose pairs take {needed / _GB:.1f} GB; expected at most {free / _GB:.1f} GB, which "
            "are free: take fewer sequences at a time, as in kernel(x[:10], x[10:20])"
        )
