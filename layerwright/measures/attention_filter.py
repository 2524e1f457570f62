"""How much of what tells tokens apart each head of attention lets through."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.filter import first_tokens, high_pass, largest_singular_value

_LENGTHS = (16, 64, 256, 1024)


@measure(unit={"largest": "1", "mean": "1"}, range=(0, None), tier="deep", paper="2410.24200", index=("head", "length"))
def attention_filter(
    attention: Tensor, *, lengths: tuple[int, ...] = _LENGTHS, temperature: float = 1.0
) -> dict[tuple[int, int, str], tuple[Tensor, Tensor]]:
    """How much of the differences between tokens each head of attention lets through.

    With A the probabilities of a head among the n tokens of a sequence and HC = I − 11ᵀ/n, which takes their mean away,

        largest = σ_a = ‖HC[A]‖_2,   mean = ‖HC[A]‖_F / √(n − 1),   ‖HC[A X]‖_F ≤ σ_a ‖HC[X]‖_F for any X

    σ_a, the paper's number, is the gain of the differences that get through best, the mean that of random ones (the
    root of the mean square). Both are 0 where all tokens attend alike and 1 where each attends to itself. Below 1 a
    head is a low-pass filter: averages are more alike than what they are made of, before value and output matrices.
    With more tokens the mean tends to be lower, which brings the embeddings of long texts together. So does σ_a where
    every token spreads its attention; it grows, up to √(n/2), where half of the tokens attend to one of them and half
    to another, as in heads of causal models.

    `length` 0 is that of whole sequences; at n it is measured among the first n tokens of sequences that have as many,
    with the probabilities of each token scaled to a sum of 1. In causal models that is the attention of the text cut
    after n tokens. The first 16 sequences of the data are measured.

    Args:
        attention: `[batch, head, token, token]`, each row a token that attends; zero at padding.
        lengths: n to cut at.
        temperature: τ, as if the scores were divided by it: A_ts ∝ A_ts^(1/τ).

    Returns:
        by head and length `[batch]` each, unit 1, at least 0, and which sequences are as long.

    Example:
        >>> uniform, itself = torch.full((3, 3), 1 / 3), torch.eye(3)
        >>> found = attention_filter(torch.stack([uniform, itself])[None], lengths=())
        >>> [round(found[head, 0, name][0].item(), 4) for head in (0, 1) for name in ("largest", "mean")]
        [0.0, 0.0, 1.0, 1.0]

    Reference: arXiv 2410.24200.
    """
    real = (attention != 0).any(-1).any(1)
    found: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}
    of_all = _gains(attention, real, temperature)
    for n in (0, *lengths):
        tokens, whole = first_tokens(real, n)
        shorter = bool(whole.any()) and not torch.equal(tokens, real)
        gains = _gains(attention, tokens, temperature) if shorter else of_all
        for name, of_heads in gains.items():
            found |= {(h, n, name): (gain, whole[:, None]) for h, gain in enumerate(of_heads.unbind(1))}
    return found


def _gains(attention: Tensor, tokens: Tensor, temperature: float) -> dict[str, Tensor]:
    """The gains among some tokens, `[B, H]` each."""
    most = int(tokens.sum(1).max())
    if most < tokens.shape[1]:  # those that count to the front
        places = (~tokens).int().argsort(dim=1, stable=True)[:, :most]
        attention = attention.take_along_dim(places[:, None, :, None], 2).take_along_dim(places[:, None, None], 3)
        tokens = tokens.gather(1, places)
    among = attention * tokens[:, None, None]
    if temperature != 1:
        among = among ** (1 / temperature)
    among = among / among.sum(-1, keepdim=True).clamp_min(torch.finfo(among.dtype).tiny)
    centred = high_pass(among, tokens[:, None])
    mean = centred.flatten(2).norm(dim=-1) / (tokens.sum(1, keepdim=True) - 1).clamp_min(1).sqrt()
    return {"largest": largest_singular_value(centred), "mean": mean}
