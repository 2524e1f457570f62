"""Mixing: one model grown in depth on some data, its new blocks mixtures of the old ones, with the loss to learn them.

A new block is called as the block that it takes after was in the unchanged pass, with other weights in it for that
call. Nothing is built: the loss of a grown model, and its derivative by the factors of the mixtures, come from the base
as it is. Each block's activations and mixed weights are made again on the way back, so that only states are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from layerwright.core.base_pass import BasePass
from layerwright.core.errors import UserError
from layerwright.core.frame import container_of
from layerwright.core.inputs import Inputs, batch_size, rows
from layerwright.core.paths import Paths
from layerwright.core.replay import Replay

# The name under which a mixing matrix stands for all weights that have none of their own.
ALL = "all"


def mixture(factors: Iterable[Any], *weights: Tensor) -> Tensor:
    """Weights times their factors, added up.

        W' = Σ_l f_l·W_l,   in float32 or wider

    Args:
        factors: numbers, or tensors of one number each.
        weights: as many tensors of one shape and dtype, which is that of the result.

    Example:
        >>> mixture([0.5, 2.0], torch.ones(2), torch.tensor([1.0, 3.0])).tolist()
        [2.5, 6.5]
    """
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    first, *others = (f * w.to(wide) for f, w in zip(factors, weights, strict=True))
    total: Tensor = sum(others, first)
    return total.to(weights[0].dtype)


def stacking(depth: int, times: int) -> Tensor:
    """The mixing matrix of stacking, D[j, j mod L] = 1: `[times·L, L]` in float64.

    Example:
        >>> stacking(2, 2).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    return torch.eye(depth, dtype=torch.float64).repeat(times, 1)


class Mixing:
    """A model on some data, grown in depth by mixing its blocks. To be used in a `with` statement.

    A mixture is given by matrices D `[times·L, L]`, one for each kind of weight by its name in a block, or one as `all`
    for those without: block j of the grown tower takes after block j mod L and has the weights Σ_l D[j, l]·W_l. Without
    any matrix a weight is that of block j mod L. Every other document is to learn on, the rest to measure on.

    Attributes:
        progress: called with the stage, the work done and the work to do.

    Example:
        >>> from layerwright.core.stack import Stack
        >>> model = nn.Sequential(*(nn.Linear(2, n, bias=False) for n in (2, 2, 3)))
        >>> inputs = {"input": torch.eye(2), "labels": torch.tensor([0, 1])}
        >>> with Paths(Stack.find(model, inputs), [inputs]) as paths, Mixing(paths) as mixing:
        ...     found = mixing.losses({"all": torch.tensor([[1.0, 0.0], [0.5, 0.5]])})
        ...     kinds = mixing.kinds
        >>> (first, second), head = (m.weight for m in model[:2]), model[2]
        >>> logits = head(torch.eye(2)[1:] @ first.T @ ((first + second) / 2).T)
        >>> kinds, torch.allclose(found, nn.functional.cross_entropy(logits, torch.tensor([1])).double())
        (('weight',), True)
    """

    def __init__(self, paths: Paths) -> None:
        """The model and the data of `paths`; nothing is run before the first question."""
        self._paths, self.progress = paths, paths.progress
        self._inside = ExitStack()

    def __enter__(self) -> Mixing:
        """Begin; the model is left as it is found, see `core/quiet.py`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Put everything back."""
        self._inside.close()

    @property
    def depth(self) -> int:
        """Number of blocks L of the unchanged tower."""
        return self._paths.depth

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of weights that are mixed, by their names in a block.

        Raises:
            UserError: blocks run several times, are no members of one list, or hold different weights.
        """
        stack = self._paths.stack
        container_of(stack)
        if len(stack.blocks) < self.depth:
            raise UserError(
                f"the tower runs {len(stack.blocks)} blocks {self.depth} times, so that a block cannot differ from run "
                "to run; expected a tower whose blocks run once each"
            )
        shapes = [{name: tuple(w.shape) for name, w in _weights(block).items()} for block in stack.blocks]
        if other := next((k for k, its in enumerate(shapes) if its != shapes[0]), None):
            raise UserError(f"blocks 0 and {other} hold weights of different names or shapes, and cannot be mixed")
        parameters = {name for name, _ in stack.blocks[0].named_parameters(remove_duplicate=False)}
        return tuple(name for name in shapes[0] if name in parameters)

    @property
    def learn(self) -> Paths:
        """The unchanged model on the documents to learn on."""
        return self._halves[0]

    @property
    def held(self) -> Paths:
        """The unchanged model on the documents to measure on."""
        return self._halves[1]

    def loss(self, mix: Mapping[str, Tensor], b: int) -> Tensor:
        """The loss of a token in one batch to learn on, from which gradients reach the matrices.

        Args:
            mix: matrices by kind of weight.
            b: number of the batch.

        Raises:
            UserError: there are fewer than two documents, or the data has no labels.
        """
        run = self.learn.runs[b]
        with torch.enable_grad():
            losses = run.losses(self._last(run, mix))
            return (losses * run.weights).sum() / run.weights.sum().clamp_min(1)

    def losses(self, mix: Mapping[str, Tensor]) -> Tensor:
        """The loss of each document to measure on, `[documents]` in float64, unit nat/token.

        Args:
            mix: matrices by kind of weight.

        Raises:
            UserError: there are fewer than two documents, or the data has no labels.
        """
        return torch.cat([run.losses(self._last(run, mix)) for run in self.held.runs])

    @cached_property
    def _halves(self) -> tuple[Paths, Paths]:
        halves: tuple[list[Inputs], list[Inputs]] = ([], [])
        documents = 0
        for inputs in self._paths.batches:
            size = batch_size(inputs)
            for n, half in enumerate(halves):
                part = slice((documents + n) % 2, None, 2)
                if range(size)[part]:
                    half.append(rows(inputs, part))
            documents += size
        if documents < 2:
            raise UserError(
                f"got data of {documents} documents; expected at least 2, to learn on one half and to measure on the "
                "other; give more text, or shorter pieces with --length"
            )
        learn, held = (self._half(half) for half in halves)
        return learn, held

    def _half(self, batches: list[Inputs]) -> Paths:
        half = Paths(self._paths.stack, batches, prefix=self._paths.prefix, memory=0)
        self._inside.enter_context(half)
        if not half.weights.any():
            raise UserError("half of the documents have no token to predict; give longer documents")
        return half

    @cached_property
    def _weights(self) -> dict[str, list[Tensor]]:
        """The weights of each kind and the buffers beside them, block by block."""
        of_blocks = [_weights(block) for block in self._paths.stack.blocks]
        return {name: [its[name] for its in of_blocks] for name in of_blocks[0]}

    def _last(self, run: BasePass, mix: Mapping[str, Tensor]) -> Tensor:
        """The last state of the grown tower."""
        matrices = {name: mix[name] if name in mix else mix.get(ALL) for name in self._weights}
        # Buffers (running means) are mixed as the step does it, but a norm has no derivative by them.
        mixed = {n: m if n in self.kinds else m.detach() for n, m in matrices.items() if m is not None}
        state = run.bottom
        for j in range(len(next(iter(mix.values())))):
            factors = {name: matrix[j] for name, matrix in mixed.items()}
            state = checkpoint(
                self._block, run.replay, j % self.depth, factors, state, use_reentrant=False, preserve_rng_state=False
            )
        return state

    def _block(self, replay: Replay, k: int, factors: Mapping[str, Tensor], state: Tensor) -> Tensor:
        """The state that a mixture in place of block `k` makes of another."""
        weights = {f"block.{name}": mixture(row, *self._weights[name]) for name, row in factors.items()}
        return functional_call(_Application(replay, k), weights, (state,), tie_weights=False)


class _Application(nn.Module):
    """One application of a block, as a module of its own."""

    def __init__(self, replay: Replay, k: int) -> None:
        super().__init__()
        self.block = replay.stack.blocks[replay.stack.order[k]]
        self._replay, self._k = replay, k

    def forward(self, state: Tensor) -> Tensor:
        return self._replay.block(self._k, state)


def _weights(block: nn.Module) -> dict[str, Tensor]:
    """What can be mixed of a block; a weight under two names under both, as it may be mixed in two ways."""
    return {name: weight.detach() for name, weight in block.state_dict().items() if weight.is_floating_point()}
