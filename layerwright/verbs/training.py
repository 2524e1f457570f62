"""`train`: training on, after a model was cut, grown or made recursive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerwright.core.progress import bars

if TYPE_CHECKING:
    from torch import nn

    from layerwright.trainers.training import Training


def train(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    steps: int,
    lr: float = 3e-4,
    batch: int = 16,
    length: int | None = None,
    accumulate: int = 1,
    warmup: int | None = None,
    weight_decay: float = 0.1,
    seed: int = 0,
    dtype: str = "auto",
    teacher: str | Path | nn.Module | None = None,
    alpha: float = 0.5,
    temperature: float = 1.0,
    every: int | None = None,
    out: str | Path | None = None,
    in_place: bool = False,
    tokenizer: Any = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: bool = False,
) -> Training:
    """Train a model on: AdamW, warm-up and cosine, with a teacher where one is given.

    Args:
        model: a live module, of which a copy is trained, a local folder, a hub name, or `demo`.
        data: text, tensors or a dataset as in a survey, or None for the text that the bundled model was trained on. A
            twentieth of the documents is held out.
        steps: updates of the weights.
        lr: learning rate at its peak.
        batch: sequences in one pass.
        length: tokens in a sequence.
        accumulate: passes whose gradients make one update.
        warmup: steps until the peak.
        weight_decay: of matrices; vectors have none.
        seed: of the order of the data and of dropout.
        dtype: of the products of matrices: `float32`, `bfloat16` or `auto`.
        teacher: a model over the same vocabulary to learn from beside the text, as the one before an edit.
        alpha: weight of the teacher, 1 − alpha that of the text.
        temperature: at which the two distributions are compared.
        every: steps between two held-out losses and checkpoints.
        out: folder for the trained model, `training.json` and `train.html`. A run that was stopped goes on from there,
            with the bits of one that was not.
        in_place: train the caller's own live model instead of a copy.
        tokenizer: for text with a live module.
        device: where to compute; a live module stays on its own.
        trust_remote_code: run code that comes with the model.
        progress: show progress bars.

    Returns:
        the trained model, the curve, and the held-out loss before and after with the interval of their difference.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    from layerwright.report import curve
    from layerwright.trainers import plain

    with bars(progress) as shown:
        return plain.train(
            model, "demo" if data is None else data, steps=steps, lr=lr, batch=batch, length=length,
            accumulate=accumulate, warmup=warmup, weight_decay=weight_decay, seed=seed, dtype=dtype, teacher=teacher,
            alpha=alpha, temperature=temperature, every=every, out=out, page=curve.page, in_place=in_place,
            tokenizer=tokenizer, device=device, trust_remote_code=trust_remote_code, progress=shown,
        )  # fmt: skip
