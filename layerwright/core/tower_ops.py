"""What a tower that theory knows is made of, as plain data: dense layers, elementwise functions, norms and sums.

`core/tower_reader.py` reads it off one call of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "Dense", "Elementwise", "Given", "Norm", "Reading", "Step", "Sum",
    "ancestors", "gaussian", "last_layers", "same_weights",
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a tower.

    Attributes:
        name: the path of a layer, or what a function is called.
        of: numbers of the steps that it reads.
    """

    name: str
    of: tuple[int, ...] = ()

    def run(self, *given: Tensor) -> Tensor:
        """What it makes of the values of the steps that it reads."""
        raise NotImplementedError


@dataclass(frozen=True)
class Given(Step):
    """The inputs of the tower, a row each."""


@dataclass(frozen=True, eq=False)
class Dense(Step):
    """A dense layer.

    Attributes:
        weight: `[outputs, inputs]`.
        bias: `[outputs]`, if it has one.
    """

    weight: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    bias: Tensor | None = None

    @property
    def weight_variance(self) -> float:
        """C_W: the weights' mean square times the number of inputs."""
        return float(self.weight.double().square().mean() * self.weight.shape[1])

    @property
    def bias_variance(self) -> float:
        """C_b: the biases' mean square."""
        return 0.0 if self.bias is None else float(self.bias.double().square().mean())

    def run(self, *given: Tensor) -> Tensor:
        """W x + b."""
        return torch.nn.functional.linear(given[0], self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Elementwise(Step):
    """A function of each number by itself.

    Attributes:
        function: of a float64 tensor.
    """

    function: Callable[[Tensor], Tensor] = torch.relu

    def run(self, *given: Tensor) -> Tensor:
        """φ(x)."""
        return self.function(given[0].double()).to(given[0])


@dataclass(frozen=True)
class Norm(Step):
    """LayerNorm or RMSNorm over the units, with one weight for all of them.

    Attributes:
        eps: ε.
        scale: the weight.
        centred: whether the mean is taken off first.
    """

    eps: float = 1e-5
    scale: float = 1.0
    centred: bool = False

    def run(self, *given: Tensor) -> Tensor:
        """γ x / √(mean x² + ε)."""
        x = given[0] - given[0].mean(-1, keepdim=True) if self.centred else given[0]
        return self.scale * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


@dataclass(frozen=True)
class Sum(Step):
    """A sum of steps that share no last layer, each times a number.

    Attributes:
        scales: these numbers.
    """

    scales: tuple[float, ...] = ()

    def run(self, *given: Tensor) -> Tensor:
        """Σ s x."""
        return sum((s * x for s, x in zip(self.scales, given, strict=True)), torch.zeros_like(given[0]))


@dataclass(frozen=True)
class Reading:
    """A network read as a tower, and what one call of it gave.

    Attributes:
        steps: from the inputs on, each after those that it reads; the last is the tower's end.
        values: what `Given`, dense layers and sums gave, `[row, unit]`, by number of the step.
        gradients: derivative by them, `[row, unit]`, of the end along one random direction of length 1 a row.
        notes: what was left out.
    """

    steps: Sequence[Step]
    values: Mapping[int, Tensor]
    gradients: Mapping[int, Tensor]
    notes: Sequence[str] = ()


def ancestors(steps: Sequence[Step], end: int) -> set[int]:
    """Numbers of the steps that one is made of, and its own.

    Example:
        >>> ancestors([Given("x"), Dense("a", (0,)), Dense("b", (0,)), Sum("s", (1,))], 3)
        {0, 1, 3}
    """
    found, left = {end}, [end]
    while left:
        new = set(steps[left.pop()].of) - found
        found |= new
        left += new
    return found


def gaussian(steps: Sequence[Step], number: int) -> bool:
    """Whether units of a step are Gaussian with mean 0 at infinite width: of dense layers, sums of them, and norms.

    Example:
        >>> steps = [Given("x"), Dense("a", (0,)), Sum("s", (1, 0), (1.0, 1.0))]
        >>> gaussian(steps, 1), gaussian(steps, 2)
        (True, False)
    """
    step = steps[number]
    if isinstance(step, (Sum, Norm)):
        return all(gaussian(steps, k) for k in step.of)
    return isinstance(step, Dense)


def last_layers(steps: Sequence[Step], number: int) -> set[int]:
    """The layers that a step is a sum of; the inputs, in whatever form, are -1.

    Example:
        >>> last_layers([Given("x"), Dense("a", (0,)), Sum("s", (1, 0), (1.0, 1.0))], 2)
        {1, -1}
    """
    step = steps[number]
    if isinstance(step, (Sum, Norm)):
        return set().union(*(last_layers(steps, k) for k in step.of))
    return {-1 if isinstance(step, Given) else number}


def same_weights(steps: Sequence[Step]) -> str | None:
    """Which dense layers have the same weights, in words; layers of zeros do not count.

    Example:
        >>> w = torch.ones(2, 2)
        >>> same_weights([Dense("a", weight=w), Dense("b", weight=w.clone())]), same_weights([Dense("a", weight=w)])
        ('a and b', None)
    """
    layers = [step for step in steps if isinstance(step, Dense) and step.weight.any()]
    for k, layer in enumerate(layers):
        for other in layers[:k]:
            if layer.weight.shape == other.weight.shape and torch.equal(layer.weight, other.weight):
                return f"{layer.name} used twice" if layer.name == other.name else f"{other.name} and {layer.name}"
    return None
