"""The largest activation sparsity that a model bears: as many neurons left out as its perplexity allows.

One dense run gives the perplexity and, from a few tokens, how the error of each block's feed-forward part grows with
the threshold (`maths/sparsity.py`). One error (CETT) common to all blocks sets their thresholds; it is searched for by
running the model with what is below them left out. Every number that is given was measured in such a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerwright.core.batch import Batch
from layerwright.core.errors import UserError
from layerwright.core.hidden import HiddenFinder, by_token, out_weight
from layerwright.core.inputs import Inputs, batch_size, call, on_device, small
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay, in_float, read_logits, watch_blocks
from layerwright.core.stack import Stack
from layerwright.maths.sparsity import TailCurve, contributions, tail_curve

# Tokens over all sequences that the curves are made from.
_TOKENS = 256
_RUNS = 8
# How near to the rise that is allowed is near enough, as a share of it.
_NEAR = 0.05
# The square of the first error tried: the loss grows about with the square.
_FIRST = 0.2**2
# Logits turned to float at once.
_LOGITS = 2**23

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A run with neurons left out.

    Attributes:
        cett: the error that set the thresholds.
        thresholds: of a neuron's contribution |a_i|·‖w_i‖, by block application.
        shares: of the neurons left out, mean over tokens, by block application.
        perplexity: of the labelled tokens.
    """

    cett: float
    thresholds: Mapping[int, float]
    shares: Mapping[int, float]
    perplexity: float

    @property
    def sparsity(self) -> float:
        """Share of neurons left out, mean over tokens and blocks."""
        return sum(self.shares.values()) / len(self.shares)


@dataclass(frozen=True)
class PerplexitySparsity:
    """PPL-p % sparsity, and how it was found.

    Attributes:
        percent: p, by which the perplexity may rise.
        dense_perplexity: of the model as it is.
        best: the run with the largest error whose perplexity rises by at most p %.
        trials: all runs, in their order.
    """

    percent: float
    dense_perplexity: float
    best: Trial
    trials: tuple[Trial, ...]


def sparsity_at_perplexity(
    stack: Stack,
    batches: Sequence[Inputs],
    percent: float = 1.0,
    *,
    prefix: int = 0,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> PerplexitySparsity:
    """The largest sparsity at which the perplexity rises by at most p percent.

    Neuron i is left out at token t where |a_i|·‖w_i‖ ≤ ε_l, in all blocks l at once; one error e is common to them,

        ε_l = max {ε: CETT_l(ε) ≤ e},   PPL(e) / PPL(0) ≤ 1 + p/100

    with CETT from the dense activations of about 256 tokens. The largest e is searched for in at most 8 runs, until the
    rise of ln PPL is within 5 % of what is allowed.

    Args:
        stack: the model and its tower.
        batches: the data, with labels where the model is not causal.
        percent: p, above 0.
        prefix: leading tokens of each sequence that do not count.
        seed: draws the tokens.
        progress: called with the stage, the work done and the work to do.

    Raises:
        UserError: p is not above 0, there is no data, it has no labels, or a block has no hidden activations.

    Reference: arXiv 2411.02335.
    """
    if not percent > 0:
        raise UserError(f"got percent {percent!r}; expected a number above 0, by which the perplexity may rise")
    if not batches:
        raise UserError("got no data to run the model on; expected at least one batch")
    with undisturbed(stack.model), torch.no_grad():
        thinned = _Thinned(stack, [on_device(inputs, stack.model) for inputs in batches], prefix, seed)
        dense, curves = thinned.dense()
        trials: list[Trial] = []

        def rise(square: float) -> float:
            progress("sparsity", len(trials) + 1, _RUNS + 1)
            trials.append(thinned.trial(math.sqrt(square), curves))
            return math.log(trials[-1].perplexity / dense)

        allowed = math.log1p(percent / 100)
        found = _largest(rise, allowed)
        if found == 0.0:
            rise(0.0)
    best = max((t for t in trials if math.log(t.perplexity / dense) <= allowed), key=lambda t: t.cett)
    return PerplexitySparsity(percent, dense, best, tuple(trials))


def _largest(rise: Callable[[float], float], allowed: float) -> float:
    """The largest square of an error found whose rise is allowed, 0 where none is.

    Secants between the logarithms of both, from the last two runs, kept inside the bracket that all runs leave.
    """
    low, high, square, slope = 0.0, math.inf, _FIRST, 1.0
    aim = (1 - _NEAR / 2) * allowed
    last: tuple[float, float] | None = None
    for _ in range(_RUNS):
        value = rise(square)
        if value <= allowed:
            low = max(low, square)
            if square == 1.0 or value >= (1 - _NEAR) * allowed:
                break
        else:
            high = min(high, square)
        if 0 < value < math.inf:
            if last is not None and last[0] != square:
                slope = min(4.0, max(0.25, math.log(value / last[1]) / math.log(square / last[0])))
            last = square, value
            square *= (aim / value) ** (1 / slope)
        else:
            square *= 16.0 if value <= 0 else 1 / 16
        if low > 0 and not low < square < high:
            square = math.sqrt(low * high) if high < math.inf else 2 * low
        square = min(square, 1.0, 0.9 * high if low == 0 else 1.0)
    return low


# What is done at a matrix: from the block application, what the matrix reads, the same by token, and the batch.
Act = Callable[[int, Tensor, Tensor, Batch], Tensor | None]


class _Thinned:
    """The model with neurons left out."""

    def __init__(self, stack: Stack, batches: Sequence[Inputs], prefix: int, seed: int) -> None:
        self._stack, self._inputs, self._prefix, self._seed = stack, batches, prefix, seed
        self._sequences = sum(map(batch_size, batches))
        finder, replay = HiddenFinder(stack), Replay(stack, small(batches[0]))
        self._modules = [self._matrix(k, finder, replay) for k in range(stack.depth)]
        self._lengths: dict[int, Tensor] = {}

    def _matrix(self, k: int, finder: HiddenFinder, replay: Replay) -> nn.Module:
        module = finder.of(k, replay)
        if module is None:
            raise UserError(
                f"block {k} ({self._stack.tower.block_class}) has no matrix that reads all hidden activations of a "
                "feed-forward part, as where experts share one tensor; their sparsity cannot be measured"
            )
        return module

    def dense(self) -> tuple[float, dict[int, TailCurve]]:
        """The perplexity of the model, and the curve of each block application from a few tokens."""
        read: dict[int, list[Tensor]] = {k: [] for k in range(self._stack.depth)}
        share = math.ceil(_TOKENS / self._sequences)

        def note(k: int, x: Tensor, rows: Tensor, batch: Batch) -> None:
            places, there = batch.collected[:, :share], batch.collected_mask[:, :share]
            few = rows[torch.arange(len(rows), device=rows.device)[:, None], places]
            read[k].append(few[there])

        perplexity = self._run(note)
        if not math.isfinite(perplexity):
            raise UserError("the model's own loss on this data is not finite; survey it to see which block is at fault")
        curves = {}
        for k, pieces in read.items():
            rows = torch.cat(pieces)
            weight = out_weight(self._modules[k], rows)
            self._lengths[k] = torch.linalg.vector_norm(weight, dim=0)
            there = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
            curves[k] = tail_curve(in_float(rows)[None], weight, there)
        return perplexity, curves

    def trial(self, cett: float, curves: Mapping[int, TailCurve]) -> Trial:
        """A run with the thresholds of an error."""
        thresholds = {k: float(curve.at(cett)[0]) for k, curve in curves.items()}
        left_out, total = dict.fromkeys(thresholds, 0), dict.fromkeys(thresholds, 0)

        def thin(k: int, x: Tensor, rows: Tensor, batch: Batch) -> Tensor:
            lengths, threshold = self._lengths[k], thresholds[k]
            small_ones = contributions(in_float(rows[batch.mask]), lengths) <= threshold
            left_out[k] += int(small_ones.sum())
            total[k] += small_ones.numel()
            return x.masked_fill(contributions(in_float(x), lengths) <= threshold, 0.0)

        perplexity = self._run(thin)
        return Trial(cett, thresholds, {k: left_out[k] / max(1, total[k]) for k in thresholds}, perplexity)

    def _run(self, act: Act) -> float:
        """Perplexity of all batches, with something done at every matrix."""
        nats, labelled, first = 0.0, 0, 0
        for inputs in self._inputs:
            batch = Batch.of(self._stack, inputs, first, self._prefix, self._sequences, self._seed)
            first += batch.size
            with self._acting(act, batch):
                logits = read_logits(call(self._stack.model, inputs), batch.native)
            more, count = self._nats(logits, batch)
            nats, labelled = nats + more, labelled + count
        if not labelled:
            raise _no_labels()
        loss = nats / labelled
        return math.exp(loss) if loss < 700 else math.inf  # a NaN is no perplexity either

    @contextmanager
    def _acting(self, act: Act, batch: Batch) -> Iterator[None]:
        running: list[int] = []

        def enter(k: int, args: Any, kwargs: Any, state: Tensor) -> None:
            if k == 0:
                batch.settle(self._stack.layout.tokens(state), state)
            running[:] = [k]

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            k = running[0]
            rows = by_token(args[0], self._stack.layout, batch.real)
            if module is not self._modules[k] or rows is None:
                return None
            new = act(k, args[0], rows, batch)
            return None if new is None else (new, *args[1:])

        handles = [module.register_forward_pre_hook(before) for module in dict.fromkeys(self._modules)]
        try:
            with watch_blocks(self._stack, enter, lambda k, output, state: None):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _nats(self, logits: Tensor | None, batch: Batch) -> tuple[float, int]:
        """Loss of the labelled tokens, summed, and their number; a few sequences at a time."""
        labels = batch.labels(self._stack)
        if logits is None or labels is None:
            raise _no_labels()
        logits = logits.unsqueeze(1) if logits.ndim == 2 else logits
        few = max(1, _LOGITS // logits[0].numel())
        nats = 0.0
        for some, wanted in zip(logits.split(few), labels.split(few), strict=True):
            given = in_float(some).flatten(0, 1), wanted.flatten()
            nats += float(torch.nn.functional.cross_entropy(*given, ignore_index=-100, reduction="sum"))
        return nats, int((labels != -100).sum())


def _no_labels() -> UserError:
    return UserError(
        "the data holds no labels for this model's output, so that no perplexity can be measured; expected text for a "
        "causal model, or inputs with `labels`"
    )
