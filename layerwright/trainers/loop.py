"""The loop itself: forward, backward, clip, step. Everything random about a step is made from the seed and its number.

So there are no random states to keep: a run that goes on at step k does what it would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.job import seed_of
from layerwright.core.sources import Batch
from layerwright.trainers.checkpoint import Checkpoints, State
from layerwright.trainers.corpus import Corpus, collate
from layerwright.trainers.distillation import distillation_loss
from layerwright.trainers.held_out import held_out_sums, mean_loss
from layerwright.trainers.objective import IGNORED, Objective, cross_entropy
from layerwright.trainers.order import Order
from layerwright.trainers.precision import Widened
from layerwright.trainers.schedule import learning_rate
from layerwright.trainers.settings import Settings

BETAS = (0.9, 0.95)
CLIP = 1.0


def adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW over every weight that asks for a gradient, each once; weight decay on matrices only.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization (arXiv 1711.05101).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=BETAS)


class Loop:
    """A model, what it is to learn, and from whom."""

    def __init__(
        self, model: nn.Module, objective: Objective, corpus: Corpus, settings: Settings, teacher: nn.Module | None
    ) -> None:
        """Prepare; `run` trains the model itself."""
        self.model, self.objective, self.corpus, self.settings, self.teacher = (
            model, objective, corpus, settings, teacher,
        )  # fmt: skip
        self.optimizer = adamw(model, settings)
        self.device = next(model.parameters()).device
        self._order = Order(len(corpus.train), settings.seed)

    def run(self, widened: Widened, checkpoints: Checkpoints | None, progress: Callable[[int, int], None]) -> State:
        """Train to the end, from the last checkpoint where there is one.

        Args:
            widened: the same model's dtypes; at the end weights are rounded to what can be stored.
            checkpoints: where to keep the state after every held-out loss.
            progress: called with the steps done and all steps.

        Raises:
            UserError: a loss or a gradient is not finite, or a checkpoint cannot be written.
        """
        steps, every = self.settings.steps, self.settings.every
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            state = (checkpoints and checkpoints.read(self.model, self.optimizer)) or self._start()
            began = time.perf_counter() - state.seconds
            self.model.train()
            for k in range(state.step, steps):
                progress(k, steps)
                row = self._step(k, "" if checkpoints is None else checkpoints.kept)
                state.step = k + 1
                if state.step == steps:
                    widened.round()
                if state.step % every == 0 or state.step == steps:
                    state.after = self._held_out(f"after step {k + 1}")
                    row[-1] = mean_loss(state.after)
                state.rows.append([k + 1, state.rows[-1][1] + row[0], *row[1:], time.perf_counter() - began])
                if checkpoints is not None and not math.isnan(row[-1]):
                    checkpoints.write(state, self.model, self.optimizer)
            progress(steps, steps)
        self.model.eval()
        return state

    def _start(self) -> State:
        start = time.perf_counter()
        sums = self._held_out("before the first step: survey the model")
        unknown = [math.nan] * 4
        return State(0, [[0, 0, *unknown, mean_loss(sums), time.perf_counter() - start]], sums, sums)

    def _held_out(self, when: str) -> np.ndarray:
        sums = held_out_sums(self.model, self.objective, self.corpus, self.settings.batch)
        if not sums[1].any():
            raise UserError("no held-out token has a label; expected some in every sequence")
        if not math.isfinite(mean_loss(sums)):
            raise UserError(f"the loss on held-out text is {mean_loss(sums)} {when}")
        return sums

    def _step(self, k: int, kept: str) -> list[float]:
        """One update: tokens, loss, distillation, learning rate, length of the gradient, and no held-out loss yet."""
        torch.manual_seed(seed_of(self.settings.seed, f"step {k}"))
        rate = self.settings.lr * learning_rate(k, self.settings.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens, losses = self._gradient(k)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        loss, distilled, length = torch.stack([*losses, norm.detach()]).tolist()
        for what, value in (("loss", loss), ("gradient", length)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {what} is {value} at step {k + 1} of {self.settings.steps}; try a lower learning rate (got "
                    f"{self.settings.lr:g}) or a longer warmup (got {self.settings.warmup}){kept}"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [tokens, loss, distilled if self.teacher else math.nan, rate, length, math.nan]

    def _gradient(self, k: int) -> tuple[int, list[Tensor]]:
        """Tokens of a step, and its mean losses over all of them, whichever pass they came in."""
        passes = [(inputs, self.objective.targets(inputs)) for inputs in self._batches(k)]
        tokens = sum(int((targets != IGNORED).sum()) for _, targets in passes)
        if tokens == 0:
            raise UserError(f"no token of step {k + 1} has a label; expected at least one")
        alpha = self.settings.alpha or 0.0
        sums = [torch.zeros((), device=self.device) for _ in range(2)]
        for inputs, targets in passes:
            with self.settings.autocast(self.device):
                logits = self.objective.logits(self.model, inputs)
            loss = cross_entropy(logits, targets).sum() / tokens
            distilled = self._distilled(logits, inputs, targets != IGNORED) / tokens
            ((1 - alpha) * loss + alpha * distilled).backward()
            sums = [total + x.detach() for total, x in zip(sums, (loss, distilled))]
        return tokens, sums

    def _distilled(self, logits: Tensor, inputs: Batch, known: Tensor) -> Tensor:
        if self.teacher is None:
            return logits.new_zeros(())
        device = next(self.teacher.parameters()).device
        there = {name: x.to(device) for name, x in inputs.items()}
        with torch.no_grad(), self.settings.autocast(self.device):
            its = self.objective.logits(self.teacher, there).to(self.device)
        return distillation_loss(logits[known], its[known], self.settings.temperature).sum()

    def _batches(self, k: int) -> list[Batch]:
        size = self.settings.batch
        start = k * size * self.settings.accumulate
        places = [self._order.at(start + n * size, size) for n in range(self.settings.accumulate)]
        return [collate([self.corpus.train[i] for i in chosen], self.device) for chosen in places]
