"""What a training run was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from layerwright.core.errors import UserError

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """Everything chosen about a run, checked.

    Attributes:
        steps: updates of the weights.
        lr: learning rate at its peak.
        batch: sequences in one pass.
        length: tokens in a sequence.
        accumulate: passes whose gradients make one update.
        warmup: steps until the peak; a twentieth of all steps unless given.
        weight_decay: of matrices; vectors (norms, biases) have none.
        seed: of the order of the data and of dropout.
        dtype: of the products of matrices: `float32`, `bfloat16` (autocast; the weights that are trained stay float32),
            or `auto`, bfloat16 on a GPU that has it.
        alpha: weight of the distillation loss, 1 − alpha that of the text; None without a teacher.
        temperature: of the distillation loss.
        every: steps between two held-out losses, each followed by a checkpoint.
    """

    steps: int
    lr: float
    batch: int
    length: int
    accumulate: int
    warmup: int
    weight_decay: float
    seed: int
    dtype: str
    alpha: float | None
    temperature: float
    every: int

    @classmethod
    def of(cls, steps: int, warmup: int | None, every: int | None, **others: Any) -> Settings:
        """Settings with the defaults that depend on the number of steps.

        Raises:
            UserError: a number makes no sense.

        Example:
            >>> rest = dict(lr=1e-3, batch=8, length=64, accumulate=1, weight_decay=0.1, seed=0, dtype="auto")
            >>> made = Settings.of(300, None, None, alpha=None, temperature=1.0, **rest)
            >>> made.warmup, made.every, made.tokens
            (15, 30, 153600)
        """
        _check_numbers({"steps": steps, "warmup": warmup, "every": every} | others)
        return cls(
            steps=steps,
            warmup=max(1, steps // 20) if warmup is None else warmup,
            every=min(100, -(-steps // 10)) if every is None else every,
            **others,
        )

    @property
    def tokens(self) -> int:
        """Tokens that the run reads, if all sequences are whole."""
        return self.steps * self.accumulate * self.batch * self.length

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which passes run."""
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        wanted = self.dtype == "bfloat16" or (self.dtype == "auto" and capable)
        return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in ("steps", "batch", "length", "accumulate", "every"):
        value = given[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"got {name} {value}; expected a whole number, at least 1")
    steps, warmup = given["steps"], given["warmup"]
    if warmup is not None and not 0 <= warmup <= steps:
        raise UserError(f"got warmup {warmup}; expected from 0 to the {steps} steps of the run")
    for name in ("lr", "temperature"):
        if not 0 < given[name] < math.inf:
            raise UserError(f"got {name} {given[name]}; expected a number above 0")
    if not 0 <= given["weight_decay"] < math.inf:
        raise UserError(f"got weight_decay {given['weight_decay']}; expected a number, at least 0")
    alpha, dtype = given["alpha"], given["dtype"]
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"got alpha {alpha}; expected from 0 (the text alone) to 1 (the teacher alone)")
    if dtype not in DTYPES:
        raise UserError(f"got dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
