"""Draft: a model to be, as the weights of its blocks. Steps of a plan turn one draft into the next.

A weight is a recipe: which tensors of the base it is made from, and how. Nothing is read before the new model is
written, a weight that no step touched is known to be a copy, and where each number comes from can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from layerwright.core.errors import NeedsModel, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from layerwright.core.anatomy import Anatomy
    from layerwright.core.depth_config import DepthConfig


class Known(Protocol):
    """What steps may ask of the base."""

    @property
    def anatomy(self) -> Anatomy:
        """The parts of its blocks."""

    @property
    def config(self) -> DepthConfig | None:
        """What its configuration says of its blocks; None where it has none."""

    @property
    def as_is(self) -> bool:
        """Whether its weights are stored in the form in which the model computes with them."""


class Block(NamedTuple):
    """One block of a draft.

    Attributes:
        source: the block of the base whose place in the configuration it takes: kind of attention, experts or not.
        weights: its tensors by their names in the block.
        tied: numbers of some weights, by name: those of the same number are one weight in several blocks.
    """

    source: int
    weights: Mapping[str, Tensor]
    tied: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Draft:
    """The blocks of a model to be, in order, and what changes beside them.

    Attributes:
        blocks: the tower.
        settings: entries of the configuration that change, beside its depth.
        notes: what a reader of the result should know.
        outside: what becomes of weights of no block, by their names in the model.
    """

    blocks: tuple[Block, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outside: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    _base: Known | None = None

    @classmethod
    def bare(cls, depth: int) -> Draft:
        """A draft without weights, of which only the order can be asked."""
        return cls(tuple(Block(k, {}) for k in range(depth)))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def anatomy(self) -> Anatomy:
        """What is known of the parts of the base's blocks.

        Raises:
            UserError: there is no base.
        """
        if self._base is None:
            raise UserError("the plan changes weights of a model, and there is none")
        return self._base.anatomy

    @property
    def config(self) -> DepthConfig:
        """What the base's configuration says of its blocks.

        Raises:
            UserError: it has none.
        """
        config = None if self._base is None else self._base.config
        if config is None:
            raise UserError("only models whose class builds them from a configuration can be told other widths")
        return config

    @property
    def as_is(self) -> bool:
        """Whether the weights have the form in which the model computes with them."""
        return self._base is None or self._base.as_is

    def pick(self, chosen: Iterable[int]) -> Draft:
        """The blocks at these places."""
        return self.of(self.blocks[k] for k in chosen)

    def of(self, blocks: Iterable[Block]) -> Draft:
        """Other blocks.

        Raises:
            UserError: there are none.
        """
        blocks = tuple(blocks)
        if not blocks:
            raise UserError("the plan leaves no block; a model needs at least one")
        return replace(self, blocks=blocks)

    def setting(self, name: str, value: Any) -> Draft:
        """Another entry of the configuration."""
        return replace(self, settings={**self.settings, name: value})

    def around(self, outside: Mapping[str, Callable[[Tensor], Tensor]]) -> Draft:
        """Other weights around the blocks, on top of what became of them before."""

        def both(name: str, made: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            before = self.outside.get(name)
            return made if before is None else lambda weight: made(before(weight))

        return replace(self, outside={**self.outside, **{name: both(name, made) for name, made in outside.items()}})

    def fresh(self) -> int:
        """A number for `Block.tied` that no weight has."""
        return 1 + max((number for block in self.blocks for number in block.tied.values()), default=-1)


class Weights(dict[str, "Tensor"]):
    """A block's tensors by name."""

    def __missing__(self, name: str) -> Tensor:
        raise NeedsModel(f"{name}, which is stored in another form,")


def changed(block: Block, weights: Mapping[str, Tensor]) -> Block:
    """The block with other tensors in place of some of its own, which then are no other block's.

    Raises:
        UserError: it has none of that name, as its file holds them in another form.
    """
    made = Weights(block.weights)
    for name, tensor in weights.items():
        assert made[name].ndim == tensor.ndim
        made[name] = tensor
    tied = {name: number for name, number in block.tied.items() if name not in weights}
    return block._replace(weights=made, tied=tied)
