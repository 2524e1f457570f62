"""Learning from another model's distribution instead of from the text's single next token."""

from __future__ import annotations

import torch
from torch import Tensor


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(z_teacher / T) ‖ softmax(z / T)) along the last axis.

    The factor T² keeps gradients of one size whatever the temperature.

    Args:
        logits: of the model that learns, `[..., class]`.
        teacher_logits: of the same shape; no gradient reaches them.
        temperature: above 0; a higher one weighs unlikely classes more.

    Returns:
        nat, at least 0 but for rounding, `[...]`.

    Reference:
        Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (arXiv 1503.02531).

    Example:
        >>> student, teacher = torch.tensor([3.0, 1.0]).log(), torch.tensor([1.0, 1.0]).log()
        >>> round(float(distillation_loss(student, teacher)), 4)  # (ln 2/3 + ln 2) / 2
        0.1438
    """
    mine = (logits / temperature).log_softmax(-1)
    its = (teacher_logits.detach() / temperature).log_softmax(-1)
    return temperature**2 * torch.nn.functional.kl_div(mine, its, reduction="none", log_target=True).sum(-1)
