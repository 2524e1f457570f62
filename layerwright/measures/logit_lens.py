"""What the model would answer if it stopped early."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.entropy import kl_divergence, overlap


@measure(
    unit={"kl": "nat", "top5_overlap": "1", "top1_agreement": "1"}, range=(0, None), paper="2505.13898"
)  # fmt: skip
def logit_lens(lens_logits: Tensor, final_logits: Tensor) -> dict[str, Tensor]:
    """What the model would answer if the tower ended early, against what it does answer.

    At a sample of tokens, each state is decoded by the rest of the model (final norm, head and all):

        kl = KL(p_lens ‖ p_final),   top5_overlap = |top5 ∩ top5| / 5,   top1_agreement = [same first choice]

    Args:
        lens_logits: every state decoded, `[state, token, classes]`.
        final_logits: the model's own output there, `[token, classes]`.

    Returns:
        `kl` in nat (at least 0), `top5_overlap` and `top1_agreement` in [0, 1], each `[state, token]`. At the last
        state kl is 0 and both others 1.

    Example:
        >>> import torch
        >>> lens = logit_lens(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[5.0, 5.0]]))
        >>> lens["kl"].item(), lens["top5_overlap"].item()
        (0.0, 1.0)

    Reference: arXiv 2505.13898, 2303.08112.
    """
    k = min(5, final_logits.shape[-1])
    lens_top, final_top = (logits.topk(k, dim=-1).indices for logits in (lens_logits, final_logits))
    return {
        "kl": kl_divergence(lens_logits, final_logits),
        "top5_overlap": overlap(lens_top, final_top),
        "top1_agreement": (lens_top[..., 0] == final_top[..., 0]).float(),
    }
