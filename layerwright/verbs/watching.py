"""`watch`: measure a model every few steps while it is trained, in any loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from layerwright.verbs.watcher import Watch

CHOSEN = ("residual_contribution", "loss_sharpness")
TOKENS = 2048


def watch(
    model: nn.Module,
    data: Any = None,
    *,
    out: str | Path,
    every: int = 100,
    measures: Sequence[str] = CHOSEN,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    blocks: str | None = None,
    tokenizer: Any = None,
    max_tokens: int = TOKENS,
    length: int | None = None,
    seed: int = 0,
    tensorboard: bool = False,
) -> Watch:
    """Log measures of a model while it is trained.

    The function that comes back is called in the loop, after the optimizer's step: `log(step, loss=loss)` measures at
    multiples of `every` and returns at once at others; `log.now(step)` measures whatever the step, as for the last one.
    The data is read once, so that every line is about the same tokens. Training goes on as if nothing had been
    measured, bit for bit. The model computes in the dtype of its weights, in evaluation mode, outside of autocast.

    `measures.jsonl` in the folder gets one line a step, `{"step": 100, "loss": 2.3, "data": DIGEST, "measures":
    {"loss_sharpness": {"block": [...], "quantity": [...], "value": [...]}}}`: of each table the columns that name its
    rows, and the value. A run that goes on adds to it; a step that is logged again takes the place of its older line.

    Args:
        model: a live module. With one that DDP or `fully_shard` wrapped, every rank calls the function; rank 0 writes.
        data: as in a survey; what is held out from training says more.
        out: folder for `measures.jsonl` and the files of TensorBoard.
        every: steps between two lines.
        measures: names of measures (`lw list measures`), or `loss_sharpness`.
        options: keyword options by measure: `{"loss_sharpness": {"rho": 0.1}}`.
        blocks: path of the tower of blocks, where the model has several.
        tokenizer: for text.
        max_tokens: how much of the data to measure on.
        length: tokens in a sequence.
        seed: seeds what measures draw.
        tensorboard: write scalars for TensorBoard as well; needs its package.

    Returns:
        the function, `log(step, **numbers)`.

    Raises:
        UserError: a measure is unknown, the folder cannot be written, or the data does not fit the model; at the first
            line also where a measure says nothing about this model. Later lines note that, and training goes on.
    """
    from layerwright.verbs.watcher import Settings, Watch

    return Watch(
        model,
        data,
        Settings(Path(out), every, measures, options or {}, blocks, tokenizer, max_tokens, length, seed, tensorboard),
    )
