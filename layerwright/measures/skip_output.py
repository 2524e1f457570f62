"""What the model answers when one block is skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure

_UNITS = {"probability_shift": "1", "kl": "nat", "loss_increase": "nat/token"}


@measure(
    unit=_UNITS | {f"future_{name}": unit for name, unit in _UNITS.items()},
    tier="standard",
    paper="2505.13898",
)
def skip_output(
    log_probabilities: Tensor, skipped_log_probabilities: Tensor, labels: Tensor
) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    """How the output changes when one block is skipped.

    With p the model's distribution and p̄ the same when the block is skipped,

        probability_shift = ‖p − p̄‖₂,   kl = KL(p ‖ p̄),   loss_increase = ln p(label) − ln p̄(label)

    The paper reports the maximum of the first over tokens. `future_…`: the block is bypassed before a random token only
    and the change is measured from that token on.

    Args:
        log_probabilities: ln p, `[batch, token, classes]`.
        skipped_log_probabilities: ln p̄, same shape.
        labels: the class to name, `[batch, token]`, -100 for none.

    Returns:
        each `[batch, token]`: `probability_shift` in [0, √2], `kl` in nat, `loss_increase` in nat/token (negative where
        the skip helps), beside it the tokens that have a label.

    Example:
        >>> p, q = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.75, 0.25]]])
        >>> rise, labelled = skip_output(p.log(), q.log(), torch.tensor([[1]]))["loss_increase"]
        >>> round(rise.item(), 4), labelled.item()
        (0.6931, True)

    Reference: arXiv 2505.13898.
    """
    p = log_probabilities.exp()
    difference = log_probabilities - skipped_log_probabilities
    labelled = labels != -100
    return {
        "probability_shift": torch.linalg.vector_norm(p - skipped_log_probabilities.exp(), dim=-1),
        "kl": torch.linalg.vecdot(p, difference).clamp_min(0.0),
        "loss_increase": (difference.gather(-1, labels.masked_fill(~labelled, 0)[..., None])[..., 0], labelled),
    }
