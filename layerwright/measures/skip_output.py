"""What the model answers when one block is skipped."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layerwright.core.registry import measure
from layerwright.maths.entropy import kl_divergence

_UNITS = {"probability_shift": "1", "kl": "nat", "loss_increase": "nat/token"}


@measure(
    unit=_UNITS | {f"future_{name}": unit for name, unit in _UNITS.items()},
    tier="standard",
    paper="2505.13898",
)
def skip_output(logits: Tensor, skipped_logits: Tensor, labels: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    """How the output changes when one block is skipped.

    With p the model's distribution and p̄ the same when the block is skipped,

        probability_shift = ‖p − p̄‖₂,   kl = KL(p ‖ p̄),   loss_increase = ln p(label) − ln p̄(label)

    The paper reports the maximum of the first over tokens. `future_…`: the block is bypassed before a random token only
    and the change is measured from that token on.

    Args:
        logits: the model's output, `[batch, token, classes]`.
        skipped_logits: the output when the block is skipped.
        labels: the class to name, `[batch, token]`, -100 for none.

    Returns:
        each `[batch, token]`: `probability_shift` in [0, √2], `kl` in nat, `loss_increase` in nat/token (negative where
        the skip helps), beside it the tokens that have a label.

    Example:
        >>> out = skip_output(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1]]))
        >>> rise, labelled = out["loss_increase"]
        >>> rise.item(), labelled.item()
        (0.0, True)

    Reference: arXiv 2505.13898.
    """
    shift = torch.linalg.vector_norm(logits.softmax(-1) - skipped_logits.softmax(-1), dim=-1)
    rise = _loss(skipped_logits, labels) - _loss(logits, labels)
    return {
        "probability_shift": shift,
        "kl": kl_divergence(logits, skipped_logits),
        "loss_increase": (rise, labels != -100),
    }


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none").view_as(labels)
