"""Paths: one model run with its blocks in many orders; orders that start alike share the work up to where they part.

A path lists block applications of the unchanged tower by number, in the order in which they run: leaving one out skips
it, naming one twice loops it. A block is called with the arguments it had in the unchanged pass, and the rest of the
model reads the last state, so that a path gives what the model would with its blocks in that order. States are kept in
a trie keyed by path. Paths asked for together are walked in sorted order, where each shared start is computed once
and the states of one branch are all that must be held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType

import torch
from torch import Tensor

from layerwright.core.base_pass import Answers, BasePass
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs
from layerwright.core.quiet import undisturbed
from layerwright.core.stack import Stack
from layerwright.core.trie import Trie

Path = tuple[int, ...]

# States held in the trie, as in the walks of a survey.
_STATE_BYTES = 2**30


class Paths:
    """One model on some data, with its blocks in any order. To be used in a `with` statement.

    Attributes:
        stack: the model and its tower.
        calls: block calls made so far, those of the unchanged passes included.
        progress: called with the stage, the work done and the work to do.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> inputs = {"input": torch.ones(2, 4), "labels": torch.tensor([0, 1])}
        >>> with Paths(Stack.find(model, inputs), [inputs]) as paths:
        ...     found = paths.loss((0, 2))
        ...     answer = model[3](model[2](model[0](inputs["input"])))
        >>> torch.allclose(found, nn.functional.cross_entropy(answer, inputs["labels"], reduction="none").double())
        True
    """

    def __init__(
        self,
        stack: Stack,
        batches: Iterable[Inputs],
        *,
        prefix: int = 0,
        memory: int = _STATE_BYTES,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        """Nothing is run before the first question.

        Args:
            stack: the model and its tower.
            batches: the data, as the model takes it.
            prefix: leading tokens of each sequence that do not count.
            memory: bytes of states held for later paths; with 0 every path is run from the bottom.
            progress: called with the stage, the work done and the work to do.
        """
        self.stack, self.progress, self.calls = stack, progress, 0
        self.batches, self.prefix = list(batches), prefix
        self._trie = Trie(memory)
        self._losses: dict[Path, Tensor] = {}
        self._inside: ExitStack | None = None

    def __enter__(self) -> Paths:
        """Leave the model as it is found, see `core/quiet.py`."""
        self._inside = ExitStack()
        self._inside.enter_context(undisturbed(self.stack.model))
        self._inside.enter_context(torch.no_grad())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Put everything back."""
        assert self._inside is not None
        self._inside.__exit__(kind, error, at)
        self._inside = None

    @property
    def depth(self) -> int:
        """Number of block applications L of the unchanged tower."""
        return self.stack.depth

    @property
    def whole(self) -> Path:
        """The unchanged path 0 … L−1."""
        return tuple(range(self.depth))

    @cached_property
    def sequences(self) -> int:
        """Number of sequences in the data."""
        return sum(run.batch.size for run in self.runs)

    @cached_property
    def runs(self) -> list[BasePass]:
        """The unchanged pass over each batch, made at the first question.

        Raises:
            UserError: there is no data, or blocks hand each other more than the stream.
        """
        if self._inside is None:
            raise RuntimeError("Paths is to be used in a with statement")
        if not self.batches:
            raise UserError("got no data to run paths on; expected at least one batch")
        runs, first = [], 0
        for b, inputs in enumerate(self.batches):
            runs.append(run := BasePass(self.stack, inputs, first, self.prefix))
            for node, state in zip(self._trie.nodes((b, *self.whole))[1:], run.take_states()):
                self._trie.put(node, state)
            first += run.batch.size
            self.calls += self.depth
        return runs

    def states(self, path: Path, b: int) -> list[Tensor]:
        """All states of a path on a batch, from the bottom to the last, in the model's own layout.

        Args:
            path: numbers of block applications.
            b: number of the batch.

        Raises:
            UserError: the path is empty or names an application that is not there.
        """
        self._check(path)
        states = [self.runs[b].bottom]
        for k, node in zip(path, self._trie.nodes((b, *path))[2:]):
            states.append(self._step(k, b, node, states[-1]))
        return states

    def state(self, path: Path, b: int) -> Tensor:
        """The last state of a path on a batch; same arguments."""
        self._check(path)
        return self._state(path, b)

    def loss(self, path: Path) -> Tensor:
        """The loss of each sequence when its blocks run in this order; as `losses` of one path."""
        return self.losses([path])[0]

    def losses(self, paths: Sequence[Path], stage: str = "paths") -> Tensor:
        """Mean negative log-likelihood of the labels in each sequence, for each path.

            −mean_t ln p(label_t),   over the labelled tokens t of a sequence

        Args:
            paths: numbers of block applications, each at least one.
            stage: what the progress is called.

        Returns:
            `[paths, sequences]` in float64, unit nat/token; 0 for a sequence without labels (its weight is 0).

        Raises:
            UserError: a path is empty or names an application that is not there; the data has no labels.
        """
        for path in paths:
            self._check(path)
        new = sorted({path for path in paths if path not in self._losses})
        if new:
            self._need_labels()
        found: dict[Path, list[Tensor]] = {path: [] for path in new}
        for b, run in enumerate(self.runs):
            for n, path in enumerate(new):
                found[path].append(run.losses(self._state(path, b)))
                self.progress(stage, b * len(new) + n + 1, len(new) * len(self.runs))
        self._losses |= {path: torch.cat(pieces) for path, pieces in found.items()}
        return torch.stack([self._losses[path] for path in paths])

    @cached_property
    def weights(self) -> Tensor:
        """How many labelled tokens each sequence has, `[sequences]` in float64.

        Raises:
            UserError: the data has no labels.
        """
        self._need_labels()
        return torch.cat([run.weights for run in self.runs])

    def mean(self, losses: Tensor) -> Tensor:
        """The loss of a token, from those of sequences along the last axis; infinite where it is not a number."""
        return ((losses * self.weights).sum(-1) / self.weights.sum()).nan_to_num(torch.inf, torch.inf)

    @property
    def labelled(self) -> bool:
        """Whether every batch says what the model should answer."""
        return all(run.labels is not None for run in self.runs)

    def answers(self, path: Path, n: int = 1) -> Answers:
        """What a path answers at the last `n` labelled tokens of each sequence, or at its last tokens without labels.

        A model that writes its answer token by token, each time the likeliest, writes the right one exactly if at each
        of its tokens, given the right ones before it, the likeliest class is the right one: one pass tells.

        Args:
            path: numbers of block applications.
            n: tokens of an answer; 1 where the model has one answer a sequence.

        Raises:
            UserError: the path is empty or names an application that is not there; the model gives no logits.
        """
        self._check(path)
        if self.stack.head is None:
            raise UserError("the model gives no logits for the tokens of these blocks, so that a path answers nothing")
        pieces = [run.answers(self._state(path, b), n) for b, run in enumerate(self.runs)]
        return Answers(*(torch.cat(parts) for parts in zip(*pieces)))

    def _state(self, path: Path, b: int) -> Tensor:
        state = self.runs[b].bottom
        nodes = self._trie.nodes((b, *path))[1:]
        start, held = self._trie.deepest(nodes)
        state = state if held is None else held
        for k, node in zip(path[start:], nodes[start + 1 :]):
            state = self._step(k, b, node, state)
        return state

    def _step(self, k: int, b: int, node: int, state: Tensor) -> Tensor:
        """The state that block application `k` makes of another, which belongs to a node of the trie."""
        after = self._trie.get(node)
        if after is None:
            after = self.runs[b].replay.block(k, state)
            self.calls += 1
            self._trie.put(node, after)
        return after

    def _check(self, path: Path) -> None:
        if not path or not all(0 <= k < self.depth for k in path):
            raise UserError(
                f"got the path {list(path)}; expected at least one of the blocks 0 to {self.depth - 1} of a tower of "
                f"{self.depth}"
            )

    def _need_labels(self) -> None:
        if self.stack.head is None:
            raise UserError("the model gives no logits for the tokens of these blocks, so that no loss can be measured")
        if not self.labelled:
            raise UserError(
                "the data holds no labels for this model's output, so that no loss can be measured; expected text for "
                "a causal model, or inputs with `labels`"
            )
