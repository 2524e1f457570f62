"""What each word of a tower makes of kernels."""

from __future__ import annotations

from functools import partial, reduce

import torch

from layerwright.maths import kernel
from layerwright.maths.activation import Activation
from layerwright.maths.attention_kernel import Tokens, attention, flatten, pool
from layerwright.maths.kernel import State
from layerwright.theories.words import Act, Attention, Dense, Dropout, Flatten, Norm, Pool, Residual, Word


def step(state: State, word: Word, draws: int | None = None, generator: torch.Generator | None = None) -> State:
    """The kernels after a word, of rows or of tokens.

    Args:
        state: the kernels before it.
        word: the word.
        draws: of the scores of attention that has no closed form.
        generator: of the draws.

    Raises:
        ValueError: attention without a closed form and without draws, or what an activation says.

    Example:
        >>> step(kernel.inputs(torch.ones(1, 2)), Dense(2.0, 0.5)).ntk
        tensor([[2.5000]])
    """
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
            inner = reduce(partial(step, draws=draws, generator=generator), word.words, state)
            return kernel.add(state, inner, scale=word.scale)
        case Attention():
            return attention(
                word.weight_variance,
                word.bias_variance,
                word.score_scale,
                word.scaling,
                word.function,
                draws,
                generator,
            )(state)
        case Flatten() | Pool():
            assert isinstance(state, Tokens)
            return flatten(state) if isinstance(word, Flatten) else pool(state)
    raise AssertionError(f"{word} on rows")
