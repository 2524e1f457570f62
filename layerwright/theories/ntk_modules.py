"""Layers of finite networks whose infinite width `tower` knows, in NTK parametrisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerwright.maths.activation import Activation
from layerwright.maths.convolution_layers import output_shape
from layerwright.theories.words import Act, Attention, Conv, Dense, Dropout, Flatten, Norm, Pool, Residual, Word


def modules(
    words: Sequence[Word], shape: tuple[int, ...], width: int, outputs: int, generator: torch.Generator
) -> nn.Sequential:
    """The finite network of a tower, at initialisation.

    Args:
        words: of the tower.
        shape: of one input: its numbers; channels, height and width; or numbers of a token, and tokens.
        width: units, or channels, of each hidden layer.
        outputs: of the last layer.
        generator: of the draw.

    Raises:
        ValueError: images smaller than a filter.
    """
    hidden, shape = _modules(words[:-1], shape, width, generator)
    last, _ = _modules(words[-1:], shape, outputs, generator)
    return nn.Sequential(*hidden, *last)


def _modules(
    words: Sequence[Word], shape: tuple[int, ...], width: int, generator: torch.Generator
) -> tuple[list[nn.Module], tuple[int, ...]]:
    """The modules of these words, and the shape of what they give."""
    made: list[nn.Module] = []
    for word in words:
        match word:
            case Dense():
                made.append(NTKLinear(shape[0], width, word.weight_variance, word.bias_variance, generator))
                shape = (width, *shape[1:])
            case Conv():
                made.append(NTKConv(shape[0], width, word, generator))
                shape = (width, *output_shape(shape[1:], word.size, word.padding))
            case Attention():
                made.append(NTKAttention(shape[0], width, word, generator))
                shape = (width, *shape[1:])
            case Act():
                assert isinstance(word.activation, Activation)
                made.append(Elementwise(word.activation))
            case Norm():
                made.append(RMSNorm(word.eps, axis=-3 if len(shape) == 3 else -1))
            case Dropout():
                made.append(nn.Dropout(1 - word.keep))
            case Residual():
                branch, _ = _modules(word.words, shape, shape[0], generator)
                made.append(Sum(nn.Sequential(*branch), word.scale))
            case Flatten():
                made.append(nn.Flatten(-len(shape)))
                shape = (math.prod(shape),)
            case Pool():
                made.append(Mean((-2, -1) if len(shape) == 3 else (-2,)))
                shape = shape[:1]
    return made, shape


class NTKLinear(nn.Module):
    """A dense layer in NTK parametrisation: parameters are N(0, 1), and the scales stand outside.

        y = √(C_W / inputs) W x + √C_b b

    Example:
        >>> layer = NTKLinear(3, 2, weight_variance=2.0, bias_variance=0.0, generator=torch.Generator())
        >>> [tuple(p.shape) for p in layer.parameters()], round(layer.scale**2, 6)
        ([(2, 3)], 0.666667)
    """

    def __init__(
        self, inputs: int, outputs: int, weight_variance: float, bias_variance: float, generator: torch.Generator
    ) -> None:
        """Draw the parameters; no bias where its variance is 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator))
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator)) if bias_variance else None
        self.scale, self.bias_scale = math.sqrt(weight_variance / inputs), math.sqrt(bias_variance)

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., inputs]` to `[..., outputs]`."""
        y = self.scale * (x @ self.weight.T)
        return y if self.bias is None else y + self.bias_scale * self.bias


class NTKConv(nn.Module):
    """A convolution in NTK parametrisation: y = √(C_W / (channels s²)) W ∗ x + √C_b b.

    Example:
        >>> layer = NTKConv(3, 2, Conv(5, padding="circular"), torch.Generator())
        >>> layer(torch.ones(1, 3, 8, 6)).shape
        torch.Size([1, 2, 8, 6])
    """

    def __init__(self, inputs: int, outputs: int, word: Conv, generator: torch.Generator) -> None:
        """Draw the parameters; no bias where its variance is 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, word.size, word.size, generator=generator))
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator)) if word.bias_variance else None
        self.scale = math.sqrt(word.weight_variance / (inputs * word.size**2))
        self.bias_scale, self.padding = math.sqrt(word.bias_variance), word.padding
        before, behind = (word.size - 1) // 2, word.size // 2
        self.margin = (0,) * 4 if word.padding == "valid" else (before, behind) * 2

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., channels, H, W]`."""
        x = functional.pad(x, self.margin, mode="circular" if self.padding == "circular" else "constant")
        y = functional.conv2d(x, self.scale * self.weight)
        return y if self.bias is None else y + self.bias_scale * self.bias[:, None, None]


class NTKAttention(nn.Module):
    """Multi-head attention in NTK parametrisation: ⌈√outputs⌉ heads, each as wide as the outputs, so that both grow.

        G = s Q Kᵀ / d or / √d,   y = √(C_W / heads) Σ_heads A(G) V W_O / √d + √C_b b,   Q = x W_Q / √inputs, …

    Example:
        >>> layer = NTKAttention(3, 8, Attention(), torch.Generator())
        >>> layer(torch.ones(2, 5, 3)).shape, layer.key is None
        (torch.Size([2, 5, 8]), True)
    """

    def __init__(self, inputs: int, outputs: int, word: Attention, generator: torch.Generator) -> None:
        """Draw the parameters; queries and keys are one for scores over d, and no bias where its variance is 0."""
        super().__init__()
        heads = math.isqrt(outputs - 1) + 1

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.query, self.value = draw(heads, inputs, outputs), draw(heads, inputs, outputs)
        self.key = draw(heads, inputs, outputs) if word.scaling == "1/sqrt(d)" else None
        self.output = draw(heads, outputs, outputs)
        self.bias = draw(outputs) if word.bias_variance else None
        self.scale, self.bias_scale = math.sqrt(word.weight_variance / (heads * outputs)), math.sqrt(word.bias_variance)
        self.score_scale = word.score_scale / (outputs if self.key is None else math.sqrt(outputs))
        self.softmax = word.function == "softmax"

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., tokens, inputs]` to `[..., tokens, outputs]`."""
        x = x.unsqueeze(-3) / math.sqrt(x.shape[-1])
        queries = x @ self.query
        scores = self.score_scale * queries @ (queries if self.key is None else x @ self.key).mT
        weights = scores.softmax(-1) if self.softmax else scores
        y = self.scale * (weights @ (x @ self.value) @ self.output).sum(-3)
        return y if self.bias is None else y + self.bias_scale * self.bias


class Elementwise(nn.Module):
    """An activation as a module."""

    def __init__(self, phi: Activation) -> None:
        """Of φ."""
        super().__init__()
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        """φ(x)."""
        return self.phi.function(x)


class Sum(nn.Module):
    """A branch beside what is carried past it."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        """The branch, and its scale r."""
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return x + r · branch(x)."""
        y: Tensor = x + self.scale * self.branch(x)
        return y


class RMSNorm(nn.Module):
    """x / √(mean x² + ε), without weights."""

    def __init__(self, eps: float, axis: int = -1) -> None:
        """Of ε, over the units on an axis."""
        super().__init__()
        self.eps, self.axis = eps, axis

    def forward(self, x: Tensor) -> Tensor:
        """Over that axis."""
        return x * (x.square().mean(self.axis, keepdim=True) + self.eps).rsqrt()


class Mean(nn.Module):
    """The mean over positions."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        """Which lie on these axes."""
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., channels, H, W]`, or `[..., tokens, units]`, to the units."""
        return x.mean(self.axes)
